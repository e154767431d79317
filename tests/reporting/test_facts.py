"""The facts as values."""

from __future__ import annotations

from fxprune.reporting.facts import Certificate, Change, total


def test_a_sum_is_unknown_before_where_a_part_is() -> None:
    assert total([Change(4, 2), Change(6, 3)]) == Change(10, 5)
    assert total([Change(4, 2), Change(None, 3)]) == Change(None, 5)
    assert total([]) == Change(0, 0)


def test_a_share_is_what_is_left() -> None:
    assert Change(8, 2).share == 0.25
    assert Change(None, 2).share is None
    assert Change(0, 0).share == 1.0


def test_a_certificate_holds_up_to_rounding() -> None:
    assert Certificate(1e-9, "outputs").holds
    assert not Certificate(1.1e-9, "outputs").holds
    assert not Certificate(float("nan"), "outputs").holds

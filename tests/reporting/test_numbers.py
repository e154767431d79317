"""Numbers are written with three digits and a unit, and rounding does not make a fourth."""

from __future__ import annotations

import pytest

from fxprune.reporting.facts import Change
from fxprune.reporting.numbers import arrow, bytes_of, count, milliseconds, percent, short, speedup, threads


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (9996, "10.0 k"), (99_960, "100 k"), (2.5e12, "2.50 T")],
)
def test_short_has_three_digits(value: float, text: str) -> None:
    assert short(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_units_of_memory_are_binary() -> None:
    assert [bytes_of(n) for n in (5, 1024, 3 * 2**20, 2**30)] == ["5 B", "1.00 KiB", "3.00 MiB", "1.00 GiB"]


def test_fractions_times_and_counts() -> None:
    assert [percent(share) for share in (1.0, 0.5, 0.0012)] == ["100 %", "50.0 %", "0.12 %"]
    assert [milliseconds(seconds) for seconds in (1.0171, 0.00532, 2e-5)] == ["1,017 ms", "5.32 ms", "0.02 ms"]
    assert speedup(0.8) == "1.25\N{MULTIPLICATION SIGN}"
    assert (count(1234567), threads(1), threads(2)) == ("1,234,567", "1 thread", "2 threads")


def test_an_arrow_goes_from_before_to_after() -> None:
    assert [arrow(change) for change in (Change(64, 31), Change(None, 31), Change(64, 64))] == [
        "64 → 31",
        "? → 31",
        "64",
    ]
    assert arrow(Change(2000, 1000), "all") == "2,000 → 1,000"

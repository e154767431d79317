"""What `x.shape` is while a model is traced: it tells where the code follows how many sizes there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fxprune.tracing.shapes import TracedSize


@pytest.mark.parametrize(
    ("use", "follows"),
    [
        (len, True), (list, True), (lambda s: s[-1], True), (lambda s: s[1:], True), (lambda s: s[:-1], True),
        (lambda s: s == (2, 3), True), (lambda s: s != (2, 3), True), (lambda s: s + (1,), True),
        (lambda s: s.numel(), True), (lambda s: s[0], False), (lambda s: s[:1], False), (repr, False),
    ],
)  # fmt: skip
def test_what_follows_the_rank_is_told(use: Callable[[Any], Any], follows: bool) -> None:
    told: list[bool] = []
    shape = TracedSize((2, 3))
    shape.on_rank = lambda: told.append(True)
    use(shape)
    assert bool(told) == follows

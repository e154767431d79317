"""What the code of a loop does beside its tensors is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fxprune.tracing.loop_watch import Watch, is_iterated, is_loop


def watched(seen: list[bool]) -> Iterator[object]:
    watch = Watch()
    for _ in range(5):
        seen.append(watch.is_open(sys._getframe(1)))
        yield object()


class Code:
    """Loops of several kinds."""

    count = 0

    def first(self, steps: Any) -> None:
        state = None
        for _ in steps:
            state = state or "known"

    def counts(self, steps: Any) -> None:
        count = 0
        for _ in steps:
            count = count + 2

    def counts_in_itself(self, steps: Any) -> None:
        for _ in steps:
            self.count += 1

    def fills(self, steps: Any) -> list[int]:
        made = []
        for _ in steps:
            made.append(object())
        return made  # type: ignore[return-value]

    def fills_and_branches(self, steps: Any) -> None:
        made: list[Any] = []
        for _ in steps:
            made.append(object())
            if made[3:]:
                made = []

    def fills_beside_a_branch(self, steps: Any) -> list[Any]:
        made: list[Any] = []
        for step in steps:
            made.append(object())
            if step is None:
                continue
        return made

    def comprehends(self, steps: Any) -> list[int]:
        return [1 for _ in steps]

    def generates(self, steps: Any) -> int:
        return sum(1 for _ in steps)


@pytest.mark.parametrize(
    ("function", "opened"),
    [
        (Code.first, False), (Code.counts, True), (Code.counts_in_itself, True), (Code.fills, False),
        (Code.fills_and_branches, True), (Code.fills_beside_a_branch, False), (Code.comprehends, False),
        (Code.generates, True),
    ],
)  # fmt: skip
def test_changes_that_further_steps_may_follow_are_seen(function: Callable[..., Any], opened: bool) -> None:
    seen: list[bool] = []
    function(Code(), watched(seen))
    assert any(seen) is opened


def test_a_range_that_is_gone_through_at_once_is_a_loop() -> None:
    found = []

    def made() -> list[int]:
        found.append(is_loop(sys._getframe(1)))
        return [1]

    for _ in made():
        pass
    [each for each in made()]  # noqa: C416
    list(made())
    kept = made()
    assert kept == [1]
    assert found == [True, True, False, False]


def test_what_a_for_goes_through_is_iterated() -> None:
    found = []

    class Pieces:
        def __iter__(self) -> Iterator[int]:
            found.append(is_iterated(sys._getframe(1)))
            return iter([1])

    for _ in Pieces():
        pass
    for _ in range(20):  # after some calls, Python runs other instructions
        list(Pieces())
    assert all(found)
    found.clear()
    sorted(Pieces())
    tuple(Pieces())
    list(zip(Pieces(), [1], strict=True))
    list(map(str, Pieces()))
    [*Pieces()]
    assert not any(found)

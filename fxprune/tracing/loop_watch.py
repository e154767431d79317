"""What the code of a loop does beside its tensors: whether its further steps may do something else."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
from types import CodeType, FrameType
from typing import Any

__all__ = ["Watch", "is_iterated", "is_loop"]


@functools.lru_cache(maxsize=1000)
def _instructions(code: CodeType) -> list[dis.Instruction]:
    return list(dis.get_instructions(code))


def is_loop(frame: FrameType) -> bool:
    """Whether what a call in a frame gives is gone through at once, as in `for i in range(n)`."""
    later = (each for each in _instructions(frame.f_code) if each.offset > frame.f_lasti)
    return next(later).opname == "GET_ITER"


def is_iterated(frame: FrameType) -> bool:
    """Whether a frame starts to go through something, as in `for x in pieces` or `list(pieces)`."""
    done = [each for each in _instructions(frame.f_code) if each.offset <= frame.f_lasti and each.opname != "CACHE"]
    last = done.pop()
    return last.opname == "GET_ITER" or ("CALL" in last.opname and last.arg == 1 and _calls_list(frame, done))


def _calls_list(frame: FrameType, done: list[dis.Instruction]) -> bool:
    """Whether what is called with one argument after these instructions is `list`: it lies below the argument."""
    if done[-1].opname == "PRECALL":
        done.pop()
    values = 1
    for each in reversed(done):
        if not values:
            return (each.opname, each.argval) == ("LOAD_GLOBAL", "list") and "list" not in frame.f_globals
        values -= dis.stack_effect(each.opcode, each.arg, jump=False)
    return False


class Watch:
    """Watches the variables of the function that a loop is in, and the attributes of its `self`.

    Plain values that change say that further steps may do something else.
    """

    def __init__(self) -> None:
        self._before: tuple[dict[str, Any], dict[str, int]] | None = None
        self._steps = 0

    def is_open(self, frame: FrameType) -> bool:
        """Whether a step has changed a number or the like; or filled a list that a branch of the loop may follow."""
        variables = {**getattr(frame.f_locals.get("self"), "__dict__", {}), **frame.f_locals}
        values = {name: value for name, value in variables.items() if type(value) in _PLAIN}
        lengths = {name: len(value) for name, value in variables.items() if type(value) in (list, dict, set)}
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            # What goes through the steps is another function.
            return True
        before, self._before = self._before, (values, lengths)
        self._steps += 1
        if before is None or self._steps <= 2:
            # The first step may be another than the others.
            return False
        filled = {name for name, length in lengths.items() if before[1].get(name) != length}
        return values != before[0] or bool(before[1].keys() - lengths.keys()) or _may_follow(frame, filled)


_PLAIN = (bool, int, float, complex, str, type(None))


# What fills a list or a set without a look at it.
_FILLS = ("append", "extend", "add", "update")


def _may_follow(frame: FrameType, filled: set[str]) -> bool:
    """Whether a loop has branches and reads one of these lists."""
    inside = [each for each in _instructions(frame.f_code) if each.offset >= frame.f_lasti]
    if not filled:
        return False
    if not inside or inside[0].opname != "FOR_ITER":
        return True
    body = [each for each in inside if each.offset < inside[0].argval and each.opname not in ("CACHE", "PRECALL")]
    branches = any("JUMP" in each.opname and "IF_" in each.opname for each in body)
    return branches and any(
        not filled.isdisjoint(each.argval if isinstance(each.argval, tuple) else (each.argval,))
        and each.opname.startswith("LOAD_")
        and following.argval not in _FILLS
        for each, following in itertools.pairwise(body)
    )

"""Loops over sizes: the graph has their steps one by one, and its code has a `for` again.

All passes see the steps of the example. Where these are alike (`rolling`), the code that is generated from the graph
repeats one of them, so that it runs at other sizes. Where they are not, the graph has a check that the size is that of
the example. Here are the functions that such code calls.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch

from fxprune.errors import FxpruneError
from fxprune.tracing.sizes import TracedInt

__all__ = [
    "append", "end_steps", "joined", "keep", "loop_index", "new_list", "next_value", "steps", "with_loop_blocks",
]  # fmt: skip


def loop_index(loop: int, step: int) -> int:
    """The number of a step of a loop, where the graph has the steps one by one."""
    return step


# --- in the code of a graph -------------------------------------------------------------------------------------------


def steps(count: Any, start: int, fewest: int) -> Any:
    """The steps of a loop from `start` on.

    Raises:
        FxpruneError: the count is smaller than `fewest`: what is used after the loop would not be there.
    """
    if isinstance(count, TracedInt):
        # A traced graph that is traced again.
        return count.nodes.loop(count, start)
    if isinstance(count, torch.Tensor):
        # Sizes are tensors while torch.jit traces, and it warns where one becomes a number.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            count = int(count)
    if count < fewest:
        raise FxpruneError(f"a loop over a size of {count} has too few steps: give an input of {fewest} or more there")
    return range(start, count)


def keep(value: Any) -> Any:
    """What a variable of a loop is before its first step."""
    return value


def next_value(variable: Any, value: Any) -> None:
    """In the code of a graph: `variable = value`."""


def new_list() -> list[Any]:
    """For a value of each step."""
    return []


def append(values: list[Any], value: Any) -> None:
    """`values.append(value)`."""
    values.append(value)


def joined(*parts: list[Any]) -> list[Any]:
    """The items of lists."""
    return [item for part in parts for item in part]


def end_steps(*used: Any) -> None:
    """In the code of a graph: the end of a loop, up to which these values are used."""


_NAME = __name__.replace(".", "_")
_STEPS = re.compile(rf"(\w+) = ({_NAME}_steps\([^;\n]*\))")
_NEXT = re.compile(rf"\w+ = {_NAME}_next_value\((\w+), (\w+)\)")
_END = re.compile(rf"\w+ = {_NAME}_end_steps\([^;\n]*\)(?:;\s*)?")


def with_loop_blocks(body: list[str]) -> list[str]:
    """The lines of the code of a graph with its loops as `for` blocks."""
    lines, depth = [], 0
    for line in "".join(body).splitlines(keepends=True):
        started, ended = _STEPS.search(line), _END.search(line)
        indent = line[: len(line) - len(line.lstrip())]
        if started:
            line = f"{indent}for {started.group(1)} in {started.group(2)}:\n"
        depth -= bool(ended)
        line = _NEXT.sub(r"\1 = \2", _END.sub("", line))
        lines.append(line if line.startswith("# COUNTER") or not line.strip() else "    " * depth + line)
        depth += bool(started)
    return lines

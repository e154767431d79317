"""How long-running functions say where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

__all__ = ["Progress", "bars", "shown", "silent"]

Progress: TypeAlias = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with the name of the work, the steps done, the steps in all, and figures to show."""


def silent(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Say nothing."""


@contextmanager
def shown(progress: bool | Progress, here: bool = True) -> Iterator[Progress]:
    """How progress is told: bars where there is a terminal, by the given function, or not at all.

    Args:
        progress: False for nothing, True for bars, or a function.
        here: whether this process is the one that tells.
    """
    if not progress or not here:
        yield silent
    elif callable(progress):
        yield progress
    elif Console().is_interactive:
        with bars() as show:
            yield show
    else:
        yield silent


@contextmanager
def bars(console: Console | None = None, title: str = "") -> Iterator[Progress]:
    """Progress bars in the terminal, one for each piece of work, below a line for all of it if that has a title."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[say]}"), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as shown:
        tasks: dict[str, TaskID] = {}
        if title:
            shown.add_task(title, total=None, say="")

        def show(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            say = "  ".join([f"{done}/{total}", *(f"{key} {value:.4g}" for key, value in figures.items())])
            if name not in tasks:
                tasks[name] = shown.add_task(f"  {name}" if title else name, total=total, say=say)
            shown.update(tasks[name], completed=done, say=say)

        yield show

"""How functions that take long show their progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from fxprune.errors import FxpruneError

__all__ = ["Progress", "bars", "shown", "silent"]

Progress: TypeAlias = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with the name of the work, the number of steps done, the number of all steps, and figures to show."""


def silent(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Show nothing."""


@contextmanager
def shown(progress: bool | Progress, here: bool = True) -> Iterator[Progress]:
    """The function that shows progress: bars if there is a terminal, the function given, or `silent`.

    Args:
        progress: False for nothing, True for bars, or a function.
        here: whether it is this process that shows progress.

    Raises:
        FxpruneError: `progress` is something else.

    Examples:
        >>> with shown(lambda name, done, total, figures: print(name, done, "of", total)) as show:
        ...     show("score", 16, 128, {})
        score 16 of 128
    """
    if not callable(progress) and not isinstance(progress, bool):
        raise FxpruneError(
            f"progress (={progress!r}) must be True, False or a function of (name, done, total, figures)"
        )
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
    """Progress bars in the terminal, one for each piece of work, with `title` as a line above them."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[say]}"), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as live:
        tasks: dict[str, TaskID] = {}
        if title:
            live.add_task(title, total=None, say="")

        def show(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            say = "  ".join([f"{done}/{total}", *(f"{key} {value:.4g}" for key, value in figures.items())])
            if name not in tasks:
                tasks[name] = live.add_task(f"  {name}" if title else name, total=total, say=say)
            live.update(tasks[name], completed=done, say=say)

        yield show

"""Where a run of the model is: which module calls are in progress, and whether its calls are recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from torch import nn

__all__ = ["ModuleCall", "Scopes", "Switch"]

# The path of a module, and how many calls of it came before.
ModuleCall: TypeAlias = tuple[str, int]


class Switch:
    """Whether the calls that the model makes are recorded.

    They are not after the run, in other threads, and inside modules that are one node of the graph.

    Attributes:
        active: whether the run goes on.
    """

    def __init__(self) -> None:
        self.active = True
        self._pauses = 0
        self._thread = threading.get_ident()

    @property
    def on(self) -> bool:
        """Whether a call made now is recorded."""
        return self.active and not self._pauses and threading.get_ident() == self._thread

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls inside are made and not recorded."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def end(self) -> None:
        """From now on nothing is recorded."""
        self.active = False


class Scopes:
    """The calls of modules that are in progress.

    Attributes:
        failed_in: the path of the innermost module in which an error was raised, or None.
    """

    def __init__(self, root: nn.Module) -> None:
        self.failed_in: str | None = None
        self._paths = {id(module): path for path, module in root.named_modules()}
        self._in_progress: list[ModuleCall] = [("", 0)]
        self._number_of_calls: dict[str, int] = {}

    def path_of(self, module: nn.Module) -> str | None:
        """The path of a module; None for one that is no part of the model."""
        return self._paths.get(id(module))

    @property
    def current(self) -> ModuleCall:
        """The innermost call."""
        return self._in_progress[-1]

    @property
    def calls(self) -> list[ModuleCall]:
        """All that were made."""
        return [(path, k) for path, count in self._number_of_calls.items() for k in range(count)]

    @property
    def described(self) -> str:
        """The innermost module, for messages."""
        path, _ = self.current
        return f"`{path}`" if path else "the model itself"

    @contextmanager
    def new_call(self, path: str) -> Iterator[None]:
        """Inside, one more call of a module is in progress."""
        count = self._number_of_calls.get(path, 0)
        self._number_of_calls[path] = count + 1
        try:
            with self.within((path, count)):
                yield
        except BaseException:
            if self.failed_in is None:
                self.failed_in = path
            raise

    @contextmanager
    def within(self, call: ModuleCall) -> Iterator[None]:
        """Inside, nodes belong to this call."""
        self._in_progress.append(call)
        try:
            yield
        finally:
            self._in_progress.pop()

"""What `x.shape` is while a model is traced."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["TracedSize"]

# The model's code sees another class under this name.
_SIZE = torch.Size


class TracedSize(tuple[int, ...]):
    """What `x.shape` is while a model is traced: `torch.Size` has no subclasses, and its `numel()` is a plain int.

    Attributes:
        on_rank: called where the code follows how many sizes there are.
    """

    on_rank: Callable[[], None] | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """For `isinstance`."""
        return _SIZE

    def numel(self) -> int:
        """The product of the sizes, as a traced number."""
        self._note_rank()
        return functools.reduce(operator.mul, self) if self else 1

    def __getitem__(self, index: Any) -> Any:
        """A size, or the sizes of a slice."""
        bounds = (index.start or 0, -1 if index.stop is None else index.stop) if isinstance(index, slice) else (index,)
        if any(bound < 0 for bound in bounds):
            self._note_rank()
        found = super().__getitem__(index)
        return TracedSize(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        """The sizes followed by others."""
        self._note_rank()
        return TracedSize(super().__add__(other))

    def __len__(self) -> int:
        """How many sizes there are."""
        self._note_rank()
        return super().__len__()

    def __iter__(self) -> Iterator[int]:
        """Go through all of them."""
        self._note_rank()
        return super().__iter__()

    def __eq__(self, other: Any) -> bool:
        """Whether the sizes are these."""
        self._note_rank()
        if isinstance(other, TracedSize):
            other._note_rank()
        return super().__eq__(other)

    def __ne__(self, other: Any) -> bool:
        """Whether they are others."""
        return not self == other

    __hash__ = tuple.__hash__

    def _note_rank(self) -> None:
        if self.on_rank is not None:
            self.on_rank()

    def __repr__(self) -> str:
        """As `torch.Size` is shown."""
        return f"torch.Size({[*super().__iter__()]})"

"""Text for digests and messages; for the same ops it is the same in every process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["first_few", "name_of", "spell"]


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function that a node calls, without its module: torch moves functions between private modules."""
    return str(getattr(function, "__name__", type(function).__name__))


def spell(value: Any, known: Mapping[fx.Node, Any]) -> str:
    """An argument as text; `known` gives the names of nodes."""
    if isinstance(value, fx.Node):
        return f"%{known[value]}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(spell(item, known) for item in value)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {spell(item, known)}' for key, item in value.items())}}}"
    if isinstance(value, slice):
        return f"slice{spell((value.start, value.stop, value.step), known)}"
    if isinstance(value, torch.device):
        # Where a model runs does not matter.
        return "device"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    return name_of(value) if callable(value) else type(value).__name__


def first_few(names: Sequence[str], most: int) -> str:
    """The first names of a list, and how many there are more.

    Examples:
        >>> first_few(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

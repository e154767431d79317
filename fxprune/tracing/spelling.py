"""What stands in a graph, in words that are the same for the same ops in another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

__all__ = ["name_of", "spell"]


def name_of(function: Callable[..., Any]) -> str:
    """The name of what a node calls."""
    # Functions of torch move between its private modules from version to version.
    return str(getattr(function, "__name__", type(function).__name__))


def spell(value: Any, known: Mapping[fx.Node, Any]) -> str:
    """An argument; nodes are called what they are known as."""
    if isinstance(value, fx.Node):
        return f"%{known[value]}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(spell(item, known) for item in value)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {spell(item, known)}' for key, item in value.items())}}}"
    if isinstance(value, slice):
        return f"slice{spell((value.start, value.stop, value.step), known)}"
    if isinstance(value, torch.device):
        return "device"  # where it runs is no part of an architecture
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return str(value)
    return name_of(value) if callable(value) else type(value).__name__

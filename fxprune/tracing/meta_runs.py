"""Functions that cannot run on the meta device as they are, and what runs there for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune.running import trees
from fxprune.running.copies import META

__all__ = ["META_RUNS"]


def _any_number(value: Any) -> Any:
    """A number of the type of a tensor that is filled with, whose value the meta device does not have."""
    return torch.zeros((), dtype=value.dtype).item() if isinstance(value, Tensor) else value


def _istft(*args: Any, **kwargs: Any) -> Tensor:
    """On the meta device: of the window, values are asked, whether it overlaps with itself enough; ones always do."""
    args, kwargs = trees.map_tensors(lambda x: torch.ones(x.shape, dtype=x.dtype), (args, kwargs))
    return torch.istft(*args, **kwargs).to(META)


META_RUNS: dict[Any, Callable[..., Any]] = {
    Tensor.cpu: lambda tensor, **_: tensor, Tensor.cuda: lambda tensor, *_, **__: tensor,
    Tensor.pin_memory: lambda tensor, *_, **__: tensor, torch.istft: _istft, Tensor.istft: _istft,
    torch.full: lambda size, fill_value, **named: torch.full(size, _any_number(fill_value), **named),
    torch.full_like: lambda tensor, fill_value, **named: torch.full_like(tensor, _any_number(fill_value), **named),
    Tensor.new_full: lambda tensor, size, fill_value, **named: tensor.new_full(size, _any_number(fill_value), **named),
}  # fmt: skip

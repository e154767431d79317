"""Results on the meta device, remembered by the layout of the inputs.

Torch runs many functions on the meta device in Python, for milliseconds; a network calls them with few layouts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["META", "call_key", "leaf_key", "recall", "remember"]

META = torch.device("meta")

_MOST_RESULTS = 20_000

_layouts: dict[Any, tuple[Any, tuple[int, ...]]] = {}


def recall(key: Any) -> tuple[Any, tuple[int, ...]] | None:
    """A new value with the layout that a call with this key has had, and which of its tensors it wrote into."""
    known = None if key is None else _layouts.get(key)
    return None if known is None else (_empty(known[0]), known[1])


def remember(key: Any, value: Any, mutated: tuple[int, ...] = ()) -> None:
    """Keeps the layout of the value of a call, which wrote into the tensors of its inputs with these positions."""
    if key is not None and len(_layouts) < _MOST_RESULTS:
        layout = _layout(value)
        if layout is not None:
            _layouts[key] = layout, mutated


def _layout(value: Any) -> Any:
    """(kind, layouts of the items) of a tuple or list, (sizes, strides, dtype) of a tensor; None for anything else."""
    if type(value) is Tensor:
        return value.size(), value.stride(), value.dtype
    if type(value) in (tuple, list):
        items = [_layout(item) for item in value]
        return None if None in items else (type(value), items)
    return None


def _empty(layout: Any) -> Any:
    if len(layout) == 2:
        return layout[0](map(_empty, layout[1]))
    size, stride, dtype = layout
    return torch.empty_strided(size, stride, dtype=dtype, device=META)


def call_key(value: Any) -> Any:
    """What a result's layout depends on, hashable; None where that cannot be told."""
    try:
        key = _keyed(value)
        hash(key)
    except TypeError:
        return None
    return key


def _keyed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.size(), value.stride(), value.dtype
    kind = type(value)
    if kind in (tuple, list, torch.Size):
        return kind, tuple(map(_keyed, value))
    if kind is slice:
        return kind, _keyed(value.start), _keyed(value.stop), _keyed(value.step)
    if kind in (int, float, bool):
        return kind, value
    return value


def leaf_key(module: nn.Module, names: tuple[str, ...], inputs: tuple[Any, ...]) -> Any:
    """What the result of a leaf depends on, or None where it may depend on more or changes something."""
    if module._modules or module._forward_hooks or module._forward_pre_hooks or getattr(module, "inplace", False):
        return None
    settings = [item for item in vars(module).items() if isinstance(item[1], (int, float, str, tuple))]
    tensors = [*module._parameters.values(), *module._buffers.values()]
    if vars(module)["training"] and module._buffers:
        return None
    return call_key((type(module), names, *inputs, *map(tuple, settings), *tensors))

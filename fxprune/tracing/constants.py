"""Tensors that a model keeps as plain attributes: where they are, and how to put them there again.

Such a tensor is a table made by `__init__`, or a cache filled by `forward`. They are constants of the graph. A model
that has run may have more of them than a new one.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["Place", "constant_name", "forget", "is_constant", "place_of_tensor", "put", "tensor_at"]

# The path of a module, the name of its attribute, and the keys that lead from there to the tensor.
Place: TypeAlias = "tuple[str, ...]"

_IN_EVERY_MODULE = frozenset(vars(nn.Module()))
_PREFIX = "_tensor_constant"


def constant_name(number: int) -> str:
    """The name of the buffer that the tracer makes of a constant."""
    return f"{_PREFIX}{number}"


def is_constant(name: str) -> bool:
    """Whether the tracer made the buffer of this name, which may have a path before it."""
    return name.rpartition(".")[2].startswith(_PREFIX)


def place_of_tensor(root: nn.Module, tensor: Tensor) -> Place | None:
    """Where a model keeps this very tensor: as an attribute, or in a dict, list or tuple that is one; or None."""
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            keys = None if name in _IN_EVERY_MODULE else _keys_to(tensor, value)
            if keys is not None:
                return (path, name, *keys)
    return None


def _keys_to(tensor: Tensor, value: Any) -> tuple[Any, ...] | None:
    if value is tensor:
        return ()
    if not isinstance(value, (dict, list, tuple)):
        return None
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        keys = _keys_to(tensor, item)
        if keys is not None:
            return (key, *keys)
    return None


def tensor_at(model: nn.Module, place: Place) -> Tensor | None:
    """The tensor at a place in a model; None where there is something else, or nothing."""
    holder, key = _holder(model, place)
    value = holder.get(key) if isinstance(holder, dict) else holder[key] if _has(holder, key) else None
    return value if isinstance(value, Tensor) else None


def put(model: nn.Module, place: Place, tensor: Tensor) -> None:
    """Put a tensor at a place in a model, if there is nothing yet, None or a tensor."""
    holder, key = _holder(model, place)
    if isinstance(holder, list) and key == len(holder):
        holder.append(tensor)
    elif isinstance(holder, dict) or _has(holder, key):
        present = holder.get(key) if isinstance(holder, dict) else holder[key]
        if present is None or isinstance(present, Tensor):
            holder[key] = tensor


def forget(model: nn.Module, place: Place) -> None:
    """Remove a tensor that the model has put at a place since it was built."""
    holder, key = _holder(model, place)
    if isinstance(holder, dict) and key in holder:
        if len(place) == 2 and _is_made_by_init(model.get_submodule(place[0]), key):
            # If it was something else before, the model's graph will differ from that of the original.
            holder[key] = None
        else:
            del holder[key]
    elif _has(holder, key):
        del holder[key]


def _is_made_by_init(module: nn.Module, name: str) -> bool:
    codes = (getattr(vars(kind).get("__init__"), "__code__", None) for kind in type(module).__mro__)
    return any(code is not None and name in code.co_names for code in codes)


def _has(holder: Any, key: Any) -> bool:
    return isinstance(holder, list) and isinstance(key, int) and 0 <= key < len(holder)


def _holder(model: nn.Module, place: Place) -> tuple[Any, Any]:
    """The dict or list that holds the tensor at a place, and the tensor's key in it; None where there is none."""
    path, name, *keys = place
    modules = dict(model.named_modules())
    if path not in modules or name in _IN_EVERY_MODULE or hasattr(nn.Module, name):
        return None, None
    if callable(getattr(type(modules[path]), name, None)):
        return None, None
    holder: Any = vars(modules[path])
    for key in (name, *keys)[:-1]:
        holder = holder.get(key) if isinstance(holder, dict) else holder[key] if _has(holder, key) else None
    return holder, (name, *keys)[-1]

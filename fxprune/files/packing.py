"""Nested dicts, lists and tuples of tensors, numbers, strings and None as JSON, with the tensors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import FxpruneError

__all__ = ["pack", "unpack"]

# JSON has neither tuples nor keys other than strings: a dict with this key stands for what it lacks.
_MARK = "$"


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A nested value as JSON.

    Args:
        value: to pack.
        tensors: gets its tensors, each under its path.
        path: what the value is called in these paths and in errors.

    Raises:
        FxpruneError: it holds something other than what the head of this module names.

    Examples:
        >>> tensors = {}
        >>> pack([1, (None, torch.zeros(2))], tensors, "x")
        [1, {'$': 'tuple', 'items': [None, {'$': 'tensor', 'name': 'x.1.1'}]}]
        >>> tensors
        {'x.1.1': tensor([0., 0.])}
    """
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_MARK: "tensor", "name": path}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        items = [
            [pack(key, tensors, f"{path}.key"), pack(item, tensors, f"{path}.{key}")] for key, item in value.items()
        ]
        return {_MARK: "dict", "items": items}
    if isinstance(value, (list, tuple)):
        items = [pack(item, tensors, f"{path}.{k}") for k, item in enumerate(value)]
        return items if isinstance(value, list) else {_MARK: "tuple", "items": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FxpruneError(
        f"{path} (a {type(value).__name__}) cannot be saved: only tensors, numbers, strings, None, "
        "and dicts, lists and tuples of them can"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` packed."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in value["items"])
    if kind == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value["items"]}
    return {key: unpack(item, tensors) for key, item in value.items()}

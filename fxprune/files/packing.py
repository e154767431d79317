"""Nested dicts, lists and tuples of tensors and plain values as JSON, with the tensors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import FxpruneError

__all__ = ["pack", "unpack"]

# JSON has no tuples and no keys but strings: what is not plain JSON is spelled as a dict with this one key.
_MARK = "$"


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A nesting as JSON; its tensors go into `tensors`, by their `path` in it.

    Raises:
        FxpruneError: it holds something else than what the head of this module names.
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
        f"{path} (a {type(value).__name__}) cannot go into a snapshot: only tensors, numbers, strings, None, "
        "and dicts, lists and tuples of them can"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` has packed."""
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

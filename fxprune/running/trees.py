"""What is in the nested values that models take and return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["has_tensor", "leaves", "map_tensors", "tensors"]


def leaves(value: Any) -> list[Any]:
    """Everything in nested tuples, lists, dicts and dataclasses that is none of them."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(value):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found.extend(leaves([getattr(leaf, field.name) for field in dataclasses.fields(leaf)]))
        else:
            found.append(leaf)
    return found


def tensors(value: Any) -> list[Tensor]:
    """The tensors among the leaves.

    Examples:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in tensors({"a": torch.zeros(2), "b": [torch.zeros(3), 1]})]
        [(2,), (3,)]
    """
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def has_tensor(value: Any) -> bool:
    """Whether there is a tensor in tuples, lists, dicts and dataclasses; quicker than `tensors`."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (tuple, list)):
        return any(map(has_tensor, value))
    if isinstance(value, dict):
        return any(map(has_tensor, value.values()))
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and has_tensor(vars(value))


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A value with what a function makes of the tensors in its tuples, lists and dicts; all else is the same object.

    Named tuples are filled as they are, by whatever their own constructor asks for.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return cast(Any, value)._make(map_tensors(function, item) for item in value)
    if type(value) in (tuple, list):
        return type(value)(map_tensors(function, item) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    return value

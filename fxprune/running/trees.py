"""Nested values, as models take and return them: the tensors in them, and the same nesting with other tensors.

torch has functions for this that are not public (`torch.utils._pytree`). They are imported here and nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Nesting", "Tree", "flatten", "has_tensor", "leaves", "map_leaves", "map_tensors", "tensors", "unflatten"]

Tree = TypeVar("Tree")
Nesting: TypeAlias = pytree.TreeSpec


def leaves(tree: object) -> list[Any]:
    """Everything in nested tuples, lists and dicts that is not one of them.

    Examples:
        >>> leaves({"a": 1, "b": [2, (3, None)]})
        [1, 2, 3, None]
    """
    return pytree.tree_leaves(tree)


def tensors(tree: object) -> list[Tensor]:
    """The tensors among the leaves, and among the fields of dataclasses.

    Examples:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in tensors({"a": torch.zeros(2), "b": [torch.zeros(3), 1]})]
        [(2,), (3,)]
    """
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
    return found


def has_tensor(tree: object) -> bool:
    """Whether tuples, lists, dicts and dataclasses hold a tensor; faster than `tensors`."""
    if isinstance(tree, Tensor):
        return True
    if isinstance(tree, (tuple, list)):
        return any(map(has_tensor, tree))
    if isinstance(tree, dict):
        return any(map(has_tensor, tree.values()))
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type) and has_tensor(vars(tree))


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same nesting with `function(leaf)` in place of each leaf."""
    mapped: Tree = pytree.tree_map(function, tree)
    return mapped


def map_tensors(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The same nesting with `function(tensor)` in place of each tensor; every other leaf is the same object.

    Dataclasses are leaves here. Named tuples are built without a call of their constructor, which may be their own.

    Examples:
        >>> import torch
        >>> map_tensors(torch.numel, {"a": torch.zeros(2, 3), "b": [torch.zeros(3), "x"]})
        {'a': 6, 'b': [3, 'x']}
    """
    found: Any = tree
    if isinstance(tree, Tensor):
        found = function(tree)
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        found = cast(Any, tree)._make(map_tensors(function, item) for item in tree)
    elif type(tree) in (tuple, list):
        found = type(found)(map_tensors(function, item) for item in found)
    elif isinstance(tree, dict) and (type(tree) is dict or pytree.tree_is_leaf(tree)):
        found = {key: map_tensors(function, item) for key, item in tree.items()}
    elif not pytree.tree_is_leaf(tree) and tensors(tree):
        items, nesting = pytree.tree_flatten(tree, is_leaf=lambda part: part is not tree)
        found = pytree.tree_unflatten([map_tensors(function, item) for item in items], nesting)
    return cast(Tree, found)


def flatten(tree: object) -> tuple[list[Any], Nesting]:
    """The leaves and how they are nested; two trees of the same nesting have nestings that are equal."""
    return pytree.tree_flatten(tree)


def unflatten(leaves: Iterable[Any], nesting: Nesting) -> Any:
    """The tree that has these leaves.

    Examples:
        >>> found, nesting = flatten({"a": 1, "b": [2, 3]})
        >>> unflatten([10 * leaf for leaf in found], nesting)
        {'a': 10, 'b': [20, 30]}
    """
    return pytree.tree_unflatten(leaves, nesting)

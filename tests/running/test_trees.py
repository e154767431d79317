"""Nested values: their leaves, and the same nesting with others."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fxprune.running.trees import flatten, has_tensor, leaves, map_leaves, map_tensors, tensors, unflatten

ONE, TWO = torch.ones(1), torch.ones(2)


class Pair(NamedTuple):
    first: Any
    second: Any


class Strict(namedtuple("Strict", "first second")):
    """A named tuple whose constructor takes something else."""

    __slots__ = ()

    def __new__(cls, both: Any) -> Strict:
        return super().__new__(cls, *both)


@dataclass
class Fields:
    first: Any
    second: Any


@pytest.mark.parametrize(
    "tree",
    [
        [ONE, {"a": TWO, "b": "x"}],
        (ONE, [TWO, None]),
        Pair(ONE, TWO),
        Strict((ONE, TWO)),
        OrderedDict(b=ONE, a=(TWO, 3)),
        deque([ONE, TWO]),
        torch.return_types.max((ONE, TWO)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_tensors_are_found_in_order_and_replaced_in_containers_of_the_same_type(tree: Any) -> None:
    assert [id(tensor) for tensor in tensors(tree)] == [id(ONE), id(TWO)]
    mapped = map_tensors(lambda tensor: tensor + 1, tree)
    assert type(mapped) is type(tree)
    assert [tensor.tolist() for tensor in tensors(mapped)] == [[2.0], [2.0, 2.0]]
    assert [leaf for leaf in leaves(mapped) if not isinstance(leaf, Tensor)] == [
        leaf for leaf in leaves(tree) if not isinstance(leaf, Tensor)
    ]


def test_what_is_not_a_tensor_is_the_same_object() -> None:
    size, thing, inside = torch.Size([1, 2]), object(), Fields(ONE, 1)
    mapped = map_tensors(torch.clone, {"size": size, "thing": [thing], "inside": inside})
    assert mapped["size"] is size
    assert mapped["thing"][0] is thing
    assert mapped["inside"] is inside
    empty: defaultdict[str, int] = defaultdict(int)
    assert map_tensors(torch.clone, (empty,))[0] is empty


def test_fields_of_dataclasses_are_looked_into() -> None:
    tree = [Fields(ONE, {"a": Fields(TWO, None)}), Fields]
    assert [id(tensor) for tensor in tensors(tree)] == [id(ONE), id(TWO)]
    assert has_tensor(tree)
    assert not has_tensor([Fields(1, "x"), Fields, {"a": (None,)}])


def test_leaves_are_mapped_and_nested_as_before() -> None:
    tree = {"a": 1, "b": (2, [3])}
    assert map_leaves(lambda leaf: leaf * 10, tree) == {"a": 10, "b": (20, [30])}
    found, nesting = flatten(tree)
    assert unflatten(found, nesting) == tree
    assert nesting == flatten({"a": 0, "b": (0, [0])})[1]
    assert nesting != flatten({"a": 0, "b": (0, (0,))})[1]

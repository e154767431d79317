"""Channel ids: what every dimension of every tensor carries, and which ids are the same channel.

A dimension (`Dim`) is either an integer, its size, when it carries no channels (batch, space, the model's input), or an
integer array with one id per index. Ids start in the parameters. Rules carry them along, unite those that must go
together and freeze those that must stay. One class of united ids is one *channel*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Dim",
    "IdTable",
    "Ids",
    "LabelTree",
    "Labels",
    "Resolved",
    "Scores",
    "Size",
    "is_labelled",
    "labels_in",
    "map_labels",
    "size_of",
]

Ids: TypeAlias = npt.NDArray[np.int64]
Scores: TypeAlias = npt.NDArray[np.float64]
Dim: TypeAlias = "int | Ids"
# What a node's value carries: as the value is nested, so are the labels.
LabelTree: TypeAlias = "Labels | Size | tuple[LabelTree, ...] | Mapping[str, LabelTree] | None"


def is_labelled(dim: Dim) -> bool:
    """Whether a dimension carries channels."""
    return not isinstance(dim, int)


def size_of(dim: Dim) -> int:
    """The number of indices of a dimension."""
    return dim if isinstance(dim, int) else len(dim)


@dataclass(frozen=True, eq=False)
class Labels:
    """What the dimensions of one tensor carry.

    `zero[d]` says that along dimension `d` the entries of a removed channel are exactly zero in the zero-masked model.
    That is so after a convolution, but not after a sigmoid. A product of two activations is summed over channels only
    where one of them is zero in this sense.
    """

    dims: tuple[Dim, ...]
    zero: tuple[bool, ...]

    @staticmethod
    def plain(shape: Iterable[int]) -> Labels:
        """A tensor without channels."""
        dims = tuple(int(n) for n in shape)
        return Labels(dims, (False,) * len(dims))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(size_of(dim) for dim in self.dims)

    @property
    def labelled(self) -> tuple[int, ...]:
        """The dimensions that carry channels."""
        return tuple(d for d, dim in enumerate(self.dims) if is_labelled(dim))

    def take(self, dims: Iterable[int]) -> Labels:
        """The labels with their dimensions reordered or dropped."""
        dims = tuple(dims)
        return Labels(tuple(self.dims[d] for d in dims), tuple(self.zero[d] for d in dims))

    def replace(self, d: int, dim: Dim, zero: bool | None = None) -> Labels:
        """The labels with one dimension replaced."""
        dims, zeros = list(self.dims), list(self.zero)
        dims[d] = dim
        if zero is not None:
            zeros[d] = zero
        return Labels(tuple(dims), tuple(zeros))

    def never_zero(self) -> Labels:
        """The labels of a tensor whose removed channels may be anything."""
        return Labels(self.dims, (False,) * len(self.dims))


@dataclass(frozen=True, eq=False)
class Size:
    """The label of a number: the size of a labelled dimension (`ids`), or another number.

    A `static` number does not change with the batch or the resolution.
    """

    ids: Ids | None
    static: bool


def labels_in(tree: Any) -> Iterator[Labels]:
    """Every `Labels` of nested tuples, lists and dicts."""
    if isinstance(tree, Labels):
        yield tree
    elif isinstance(tree, (tuple, list, Mapping)):
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from labels_in(item)


def map_labels(function: Callable[[Any], Labels | Size], tree: LabelTree) -> LabelTree:
    """The tree with what `function` returns for each of its `Labels` and `Size`."""
    if isinstance(tree, (Labels, Size)):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return tuple(map_labels(function, item) for item in tree)
    if isinstance(tree, Mapping):
        return {key: map_labels(function, item) for key, item in tree.items()}
    return tree


class Resolved(NamedTuple):
    """What an `IdTable` comes to: the channel of every id, and why channels are frozen or a last resort."""

    channel_of: Ids
    frozen: dict[int, str]
    last_resort: dict[int, str]


class IdTable:
    """Allocates ids, and collects which of them are united and which are frozen; resolved once, at the end."""

    def __init__(self) -> None:
        self._count = 0
        self._left: list[Ids] = []
        self._right: list[Ids] = []
        self._frozen: list[tuple[Ids, str]] = []
        self._last_resort: list[tuple[Ids, str]] = []

    def fresh(self, n: int) -> Ids:
        """`n` new ids."""
        self._count += n
        return np.arange(self._count - n, self._count, dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Index by index, the two are the same channel."""
        if left is right:
            return
        if left.shape != right.shape:
            raise ValueError(f"cannot unite ids of shape {left.shape} with ids of shape {right.shape}")
        self._left.append(left.ravel())
        self._right.append(right.ravel())

    def freeze(self, dim: Dim, reason: str) -> None:
        """The channels of a dimension, if it has any, cannot be pruned; `reason` says why."""
        if not isinstance(dim, int):
            self._frozen.append((dim.ravel(), reason))

    def mark_last_resort(self, dim: Dim, reason: str) -> None:
        """The channels of a dimension, if it has any, are pruned only if the budget cannot be met without them."""
        if not isinstance(dim, int):
            self._last_resort.append((dim.ravel(), reason))

    def resolve(self) -> Resolved:
        """Number the channels. Of several reasons for a channel the first counts."""
        representative = _connected_components(self._count, self._left, self._right)
        _, channel = np.unique(representative, return_inverse=True)
        channel = channel.astype(np.int64)
        return Resolved(channel, _first_reasons(channel, self._frozen), _first_reasons(channel, self._last_resort))


def _first_reasons(channel: Ids, given: Sequence[tuple[Ids, str]]) -> dict[int, str]:
    """Channel number -> the first reason given for any of its ids."""
    number_of = np.full(int(channel.max()) + 1 if len(channel) else 0, -1, dtype=np.int64)
    for number, (ids, _) in reversed(list(enumerate(given))):
        number_of[channel[ids]] = number
    return {int(c): given[number_of[c]][1] for c in np.flatnonzero(number_of >= 0)}


def _connected_components(count: int, left: Sequence[Ids], right: Sequence[Ids]) -> Ids:
    """The smallest id of every id's class: hooking of roots and pointer jumping, O(edges * log edges)."""
    parent = np.arange(count, dtype=np.int64)
    if not left:
        return parent
    a, b = np.concatenate(left), np.concatenate(right)
    while True:
        root_a, root_b = parent[a], parent[b]
        open_edges = root_a != root_b
        if not open_edges.any():
            return parent
        a, b = root_a[open_edges], root_b[open_edges]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            grandparent = parent[parent]
            if np.array_equal(grandparent, parent):
                break
            parent = grandparent

"""Channel ids: what every dimension of every tensor carries, which ids are the same channel, and the groups they form.

A dimension (`Dim`) is either an integer, its size, when it carries no channels (batch, space, the model's input), or an
integer array with one id per index. Ids start in the parameters; rules carry them along, unite those that must go
together and freeze those that must stay. One class of united ids is one *channel*.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import fx

from fxprune.polynomial import Polynomial, Term

__all__ = [
    "ChannelGraph",
    "Dim",
    "Dimension",
    "Frozen",
    "Group",
    "IdTable",
    "Ids",
    "Labels",
    "Scores",
    "Size",
    "is_labelled",
    "map_labels",
    "size_of",
]

Ids: TypeAlias = npt.NDArray[np.int64]
Scores: TypeAlias = npt.NDArray[np.float64]
Dim: TypeAlias = "int | Ids"


def is_labelled(dim: Dim) -> bool:
    """Whether a dimension carries channels."""
    return not isinstance(dim, int)


def size_of(dim: Dim) -> int:
    """The number of indices of a dimension."""
    return dim if isinstance(dim, int) else len(dim)


@dataclass(frozen=True, eq=False)
class Labels:
    """What the dimensions of one tensor carry.

    `zero[d]` tells that along dimension `d` the entries of a removed channel are exactly zero in the zero-masked model.
    That is so after a convolution, not after a sigmoid; contracting two activations needs it.
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


@dataclass(frozen=True, eq=False)
class Size:
    """The label of an integer: the size of a labelled dimension (`ids`), or some other number.

    `static` numbers do not change with the batch or the resolution.
    """

    ids: Ids | None
    static: bool


def map_labels(function: Any, tree: Any) -> Any:
    """Apply `function` to every `Labels` or `Size` of nested tuples, lists and dicts."""
    if isinstance(tree, (Labels, Size)):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return tuple(map_labels(function, item) for item in tree)
    if isinstance(tree, Mapping):
        return {key: map_labels(function, item) for key, item in tree.items()}
    return tree


class IdTable:
    """Allocates ids, and collects which of them are united and which are frozen; resolved once, at the end."""

    def __init__(self) -> None:
        self._count = 0
        self._left: list[Ids] = []
        self._right: list[Ids] = []
        self._frozen: list[tuple[Ids, str]] = []
        self._reluctant: list[tuple[Ids, str]] = []

    def fresh(self, n: int) -> Ids:
        """`n` new ids."""
        self._count += n
        return np.arange(self._count - n, self._count, dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Index by index, the two are the same channel."""
        if left is right:
            return
        assert left.shape == right.shape, f"cannot unite {left.shape} with {right.shape}"
        self._left.append(left.ravel())
        self._right.append(right.ravel())

    def freeze(self, ids: Ids, reason: str) -> None:
        """These channels cannot be pruned, and why."""
        self._frozen.append((ids.ravel(), reason))

    def mark_reluctant(self, ids: Ids, reason: str) -> None:
        """These channels can be pruned, but at a price; they are kept while the budget can be met without them."""
        self._reluctant.append((ids.ravel(), reason))

    def resolve(self) -> tuple[Ids, dict[int, str], dict[int, str]]:
        """The channel number of every id, and the reasons of the frozen and of the reluctant channels."""
        representative = _connected_components(self._count, self._left, self._right)
        _, channel = np.unique(representative, return_inverse=True)
        channel = channel.astype(np.int64)
        return channel, _first_reasons(channel, self._frozen), _first_reasons(channel, self._reluctant)


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


@dataclass(frozen=True)
class Dimension:
    """A dimension of a parameter or buffer."""

    parameter: str
    dim: int

    def __str__(self) -> str:
        return f"{self.parameter}[{self.dim}]"


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that live on the same dimensions; each of them can be pruned on its own.

    `repeats` says how many indices one channel takes in the dimension where it takes the most. A `reluctant` group is
    pruned only when the budget cannot be met without it; the text says why.
    """

    name: str
    channels: Ids
    dimensions: tuple[Dimension, ...]
    repeats: int
    reluctant: str = ""

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True, eq=False)
class Frozen:
    """Channels that live on the same dimensions and cannot be pruned, and why."""

    reason: str
    channels: Ids
    dimensions: tuple[Dimension, ...]

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A traced model and its channels.

    Attributes:
        module: the traced model; never changed.
        labels: what every node's output carries, by node name, in channel numbers.
        parameters: the dimensions of every parameter and buffer that was reached, by name, in channel numbers.
        groups: the channels that can be pruned.
        frozen: the channels that cannot, with the reason.
        flops: FLOPs as a polynomial in the kept channels, as fvcore counts them.
        costs: the terms of the polynomial, by name of the node that they are of.
        num_channels: the number of channels, frozen ones included.
        contractions: by node name, the arguments (node name, dimension) whose channels are summed over there. A gate
            that is zero at these places removes its channel exactly.
        remarks: what the tracer had to decide.
        latency: time as a polynomial in the kept channels, in femtoseconds, where `fxprune.time_channels` measured it.
    """

    module: fx.GraphModule
    labels: Mapping[str, Any]
    parameters: Mapping[str, tuple[Dim, ...]]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    flops: Polynomial
    costs: Mapping[str, tuple[Term, ...]]
    num_channels: int
    contractions: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = field(default=())
    latency: Polynomial | None = None

    @property
    def price(self) -> Polynomial:
        """What a channel's worth is set against: time where it was measured, else FLOPs."""
        return self.flops if self.latency is None else self.latency

    def __str__(self) -> str:
        free, kept = sum(map(len, self.groups)), sum(map(len, self.frozen))
        groups = "1 group" if len(self.groups) == 1 else f"{len(self.groups)} groups"
        lines = [f"{free} prunable channels in {groups}, {kept} frozen, {self.flops.total:,} FLOPs"]
        for group in self.groups:
            repeated = f" x{group.repeats}" if group.repeats > 1 else ""
            reluctant = f", only if needed: {group.reluctant}" if group.reluctant else ""
            lines.append(f"  {group.name}: {len(group)} channels{repeated}{reluctant}")
            lines.extend(f"    {line}" for line in _summary(group.dimensions))
        if self.frozen:
            lines.append("frozen:")
        reasons: Counter[str] = Counter()
        for frozen in self.frozen:
            reasons[frozen.reason] += len(frozen)
        for reason, count in reasons.most_common():
            members = [d for frozen in self.frozen if frozen.reason == reason for d in frozen.dimensions]
            lines.append(f"  {reason}: {count} channels")
            lines.extend(f"    {line}" for line in _summary(members))
        lines.extend(f"note: {remark}" for remark in self.remarks)
        return "\n".join(lines)


def _summary(dimensions: Sequence[Dimension], most: int = 8) -> list[str]:
    lines = [str(dimension) for dimension in dict.fromkeys(dimensions)]
    return lines if len(lines) <= most else [*lines[: most - 1], f"... and {len(lines) - most + 1} more"]

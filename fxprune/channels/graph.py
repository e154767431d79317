"""The channels of a model and the groups that they form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import fx

from fxprune.channels.ids import Dim, Ids, Labels, LabelTree
from fxprune.channels.polynomial import Polynomial, Term
from fxprune.errors import FxpruneError

__all__ = ["Block", "ChannelGraph", "Dimension", "Frozen", "Group", "NoBlock"]


@dataclass(frozen=True)
class Dimension:
    """A dimension of a parameter or buffer."""

    parameter: str
    dim: int

    def __str__(self) -> str:
        return f"{self.parameter}[{self.dim}]"


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """Channels on the same dimensions; each of them can be pruned on its own.

    Attributes:
        name: the module that owns the first of the dimensions; numbered where several groups start there.
        channels: channel numbers.
        dimensions: the dimensions of parameters and buffers that the channels are on.
        repeats: how many indices one channel takes in the dimension where it takes the most.
        last_resort: why the group is pruned only if the budget cannot be met without it, or more than 2 % of it stay
            unused; empty for all other groups.
        common: the largest number of indices that divides what one channel takes in every dimension of a weight or an
            activation. A width of attention heads takes 8 indices of a layer with 8 heads, and 1 once they are split.
    """

    name: str
    channels: Ids
    dimensions: tuple[Dimension, ...]
    repeats: int
    last_resort: str = ""
    common: int = 1

    def __len__(self) -> int:
        return len(self.channels)

    def __repr__(self) -> str:
        return f"Group({self.name!r}, {_number(len(self), 'channel')} on {_number(len(self.dimensions), 'dimension')})"


@dataclass(frozen=True, eq=False, repr=False)
class Frozen:
    """Channels on the same dimensions that cannot be pruned, and why."""

    reason: str
    channels: Ids
    dimensions: tuple[Dimension, ...]

    def __len__(self) -> int:
        return len(self.channels)

    def __repr__(self) -> str:
        on = _number(len(self.dimensions), "dimension")
        return f"Frozen({self.reason!r}, {_number(len(self), 'channel')} on {on})"


@dataclass(frozen=True, eq=False, repr=False)
class Block:
    """A part of the model that can be left out whole, such as a residual branch or a dense layer.

    Attributes:
        name: the module that has its weights; numbered where several blocks have one name.
        channel: its number among the channels; it is on no dimension.
        channels: all that go with it: its number, and the channels that its value has in concatenations.
        nodes: the names of the nodes that serve nothing else, in the order of the graph.
        value: the name of the last of them, whose value is left out.
        readers: the names of the nodes that it is left out of: a sum, or one or more concatenations.
        stays: the name of the node whose value the sum then is; empty for concatenations.
        ends: the parameters and buffers at its end. When these are zero, its value is; or else the channels of its
            value are removed wherever they are read.
        tensors: all parameters and buffers that go with it.
        flops: of its nodes, when all channels are there.
    """

    name: str
    channel: int
    channels: Ids
    nodes: tuple[str, ...]
    value: str
    readers: tuple[str, ...]
    stays: str
    ends: tuple[str, ...]
    tensors: tuple[str, ...]
    flops: int

    def __repr__(self) -> str:
        return f"Block({self.name!r}, {_number(len(self.nodes), 'node')}, {self.flops:,} FLOPs)"


@dataclass(frozen=True)
class NoBlock:
    """A value that is added or concatenated to others and cannot be left out, by the name of its node, and why."""

    value: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class ChannelGraph:
    """A traced model and its channels. `str` lists all groups and reasons, `repr` only counts them.

    Attributes:
        module: the traced model; never changed.
        labels: what the value of every node carries, by node name, in channel numbers.
        parameters: the dimensions of the parameters and buffers that are used, by name, in channel numbers.
        groups: the channels that can be pruned.
        frozen: the channels that cannot, with the reason.
        blocks: the parts that can be left out whole.
        no_blocks: the values that are added to others and cannot be left out, with the reason.
        optional: by node name, the sets of blocks, by channel number, of which one must be there whole for the node to
            be needed. Nodes that are always needed are missing.
        flops: FLOPs as a polynomial in the kept channels, as fvcore counts them.
        memory: the most bytes of activations that exist at the same time in eval, as a polynomial in the kept channels.
            Where blocks are left out, at most so many.
        costs: the terms of the polynomial, by node name.
        num_channels: the number of channels, frozen ones included.
        contractions: by node name, the arguments (node name, dimension) whose channels are summed over there. A gate
            that is zero at these places removes its channel exactly.
        held: by node name of a reshape, the sizes (node name, dimension) that must be those of the example if channels
            are pruned there; at others the model mixes samples, and channels with positions.
        remarks: what the tracer decided and a user should know.
        latency: time as a polynomial in the kept channels, in femtoseconds, where `fxprune.time_channels` measured it.
    """

    module: fx.GraphModule
    labels: Mapping[str, LabelTree]
    parameters: Mapping[str, tuple[Dim, ...]]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    flops: Polynomial
    memory: Polynomial
    costs: Mapping[str, tuple[Term, ...]]
    num_channels: int
    contractions: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    held: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    no_blocks: tuple[NoBlock, ...] = ()
    optional: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = field(default=())
    latency: Polynomial | None = None

    @property
    def price(self) -> Polynomial:
        """The cost that scores are weighed against: time where it was measured, else FLOPs."""
        return self.flops if self.latency is None else self.latency

    def labels_of(self, node: str) -> Labels:
        """What the tensor of a node carries, in channel numbers.

        Raises:
            FxpruneError: the node gives no tensor, or several.
        """
        labels = self.labels[node]
        if not isinstance(labels, Labels):
            raise FxpruneError(f"node {node} does not give one tensor")
        return labels

    def all_but(self, blocks: Iterable[Block]) -> npt.NDArray[np.bool_]:
        """All channels and blocks, but without some blocks: one boolean per channel."""
        alive = np.ones(self.num_channels, dtype=bool)
        for block in blocks:
            alive[block.channels] = False
        return alive

    def __repr__(self) -> str:
        return f"ChannelGraph({self._summary()})"

    def _summary(self) -> str:
        free, kept = sum(map(len, self.groups)), sum(map(len, self.frozen))
        groups = _number(len(self.groups), "group")
        blocks = f", {_number(len(self.blocks), 'block')}" if self.blocks else ""
        return f"{free} prunable channels in {groups}, {kept} frozen{blocks}, {self.flops.total:,} FLOPs"

    def __str__(self) -> str:
        lines = [self._summary()]
        for group in self.groups:
            repeated = f" x{group.repeats}" if group.repeats > 1 else ""
            last_resort = f", only if needed: {group.last_resort}" if group.last_resort else ""
            lines.append(f"  {group.name}: {len(group)} channels{repeated}{last_resort}")
            lines.extend(f"    {line}" for line in _shortened(group.dimensions))
        if self.frozen:
            lines.append("frozen:")
        reasons: Counter[str] = Counter()
        for frozen in self.frozen:
            reasons[frozen.reason] += len(frozen)
        for reason, count in reasons.most_common():
            members = [d for frozen in self.frozen if frozen.reason == reason for d in frozen.dimensions]
            lines.append(f"  {reason}: {count} channels")
            lines.extend(f"    {line}" for line in _shortened(members))
        if self.blocks:
            lines.append("blocks:")
        lines.extend(f"  {block.name}: {block.flops:,} FLOPs" for block in self.blocks)
        if self.no_blocks:
            lines.append("no blocks:")
        lines.extend(f"  {each.value}: {each.reason}" for each in self.no_blocks)
        lines.extend(f"note: {remark}" for remark in self.remarks)
        return "\n".join(lines)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _shortened(dimensions: Sequence[Dimension], most: int = 8) -> list[str]:
    lines = [str(dimension) for dimension in dict.fromkeys(dimensions)]
    return lines if len(lines) <= most else [*lines[: most - 1], f"... and {len(lines) - most + 1} more"]

"""Channels, the groups that they form, and the model that they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxprune.channels.ids import Dim, Ids
from fxprune.channels.polynomial import Polynomial, Term

__all__ = ["ChannelGraph", "Dimension", "Frozen", "Group"]


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

    `repeats` says how many indices one channel takes in the dimension where it takes the most. A `last_resort` group is
    pruned only when the budget cannot be met without it; the text says why.
    """

    name: str
    channels: Ids
    dimensions: tuple[Dimension, ...]
    repeats: int
    last_resort: str = ""

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
            last_resort = f", only if needed: {group.last_resort}" if group.last_resort else ""
            lines.append(f"  {group.name}: {len(group)} channels{repeated}{last_resort}")
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

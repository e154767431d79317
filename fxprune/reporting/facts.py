"""The facts in a report, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fxprune.verification import TOLERANCE

__all__ = ["Certificate", "Change", "FrozenFacts", "GroupFacts", "LayerFacts", "Memory", "Row", "Structure", "total"]


@dataclass(frozen=True)
class Change:
    """A number before and after pruning; `before` is None where only the original could tell it."""

    before: int | None
    after: int

    @property
    def share(self) -> float | None:
        """The fraction that is left."""
        return None if self.before is None else self.after / self.before if self.before else 1.0


def total(changes: Iterable[Change]) -> Change:
    """The sum; its `before` is unknown where one of theirs is."""
    changes = list(changes)
    known = [change.before for change in changes if change.before is not None]
    return Change(sum(known) if len(known) == len(changes) else None, sum(change.after for change in changes))


@dataclass(frozen=True)
class LayerFacts:
    """A module with weights of its own, or an op without weights that costs FLOPs.

    Attributes:
        name: the path of the module; of an op, the path of the module that calls it and the op's name.
        kind: the class of the module, or the name of the op.
        channels: output channels; None where it has none.
        flops: at the example inputs.
        parameters: how many it has.
        groups: names of the groups that its output channels belong to.
        wide: whether it has a weight of two or more dimensions: a convolution or a linear layer, not a norm.
    """

    name: str
    kind: str
    channels: Change | None
    flops: Change
    parameters: Change
    groups: tuple[str, ...] = ()
    wide: bool = False


@dataclass(frozen=True)
class GroupFacts:
    """Channels that are pruned together.

    Attributes:
        name: as `fxprune.Group` has it.
        layers: the layers that compute these channels.
        readers: the other layers with a dimension of them.
        channels: how many channels.
        repeats: how many indices one channel takes in the dimension where it takes the most.
        flops: of the layers that compute them; a layer that computes several groups divides its FLOPs among them.
        parameters: likewise.
        last_resort: why the group is pruned only where the budget cannot be met without it, or more than 2 % of it stay
            unused; empty for most.
    """

    name: str
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: Change
    repeats: int
    flops: Change
    parameters: Change
    last_resort: str = ""


@dataclass(frozen=True)
class FrozenFacts:
    """Channels that cannot be pruned, by reason.

    Attributes:
        reason: why.
        layers: the layers that compute them; none where they belong to an input.
        channels: how many.
        flops: of the layers that compute them.
        parameters: likewise.
    """

    reason: str
    layers: tuple[str, ...]
    channels: int
    flops: Change
    parameters: Change


@dataclass(frozen=True)
class Certificate:
    """How far the pruned model is from the zero-masked original, as `fxprune.verify` measures it.

    Attributes:
        error: the largest difference of an output entry, relative; float64.
        of: "outputs" where the weights are slices of the original's; "structure" where they are not, and slices took
            their place for the comparison.
        against: "original" if that was given; "rebuilt" if it was built again by its name, with random weights.
    """

    error: float
    of: str
    against: str = "original"

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding alone."""
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: of parameters and buffers.
        peak: of all tensors that exist at the same time in one forward pass, weights included; None if not measured.
    """

    weights: int
    peak: int | None

    @property
    def activations(self) -> int | None:
        """The peak without the weights."""
        return None if self.peak is None else self.peak - self.weights


@dataclass(frozen=True)
class Row:
    """A row of the drawn graph.

    Attributes:
        name: of the layer, or of the module where branches meet.
        kind: the class of the module or the name of the op.
        inputs: the numbers of the rows that it reads.
        group: the number of the group of its output channels in `Report.groups`; None if frozen or none.
        channels: output channels, where it is a layer.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    group: int | None
    channels: Change | None = None


@dataclass(frozen=True)
class Structure:
    """Layers, groups and graph of a pruned model."""

    layers: tuple[LayerFacts, ...]
    groups: tuple[GroupFacts, ...]
    frozen: tuple[FrozenFacts, ...]
    rows: tuple[Row, ...]

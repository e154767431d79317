"""The channels of a pruned model before and after: from its original, or as far as it knows them itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from fxprune.channels import ChannelGraph, Group
from fxprune.channels.polynomial import Term
from fxprune.errors import FxpruneError
from fxprune.provenance import pruning_notes
from fxprune.reporting.facts import Change
from fxprune.rewriting import alive_channels, original_graph
from fxprune.running.copies import named_tensors
from fxprune.tracing.fingerprint import Fingerprint, fingerprint

__all__ = ["Basis", "make_basis"]


@dataclass(frozen=True, eq=False)
class Basis:
    """A graph, and what it tells of before and after.

    Attributes:
        graph: of the original (`whole`), or of the pruned model where there is no original.
        alive: the channels of the graph that are left.
        tensors: the parameters and buffers that are left.
        original: the architecture before pruning.
        whole: whether the graph is the original's.
    """

    graph: ChannelGraph
    alive: npt.NDArray[np.bool_]
    tensors: Mapping[str, Tensor]
    original: Fingerprint
    whole: bool

    def flops(self, terms: Sequence[Term], weight: str | None) -> Change:
        """What a node costs; without the original, the cost before is estimated from the size of its weight."""
        after = sum(each(self.alive) for each in terms)
        if self.whole:
            return Change(sum(each(np.ones_like(self.alive)) for each in terms), after)
        if weight is None:
            return Change(None, after)
        size = self.size(weight)
        return Change(round(after * (size.before or 0) / max(size.after, 1)), after)

    def shape(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of a tensor before and after."""
        before = self.original.tensors.get(name, ((), ""))[0]
        # Of a block that is left out nothing is there.
        after = tuple(self.tensors[name].shape) if name in self.tensors else (0,) * max(len(before), 1)
        return (self.original.tensors[name][0] if name in self.original.tensors else after), after

    def size(self, name: str) -> Change:
        """The number of entries of a tensor."""
        before, after = self.shape(name)
        return Change(math.prod(before), math.prod(after))

    def channels(self, group: Group) -> Change:
        """How many channels a group has."""
        after = int(self.alive[group.channels].sum())
        if self.whole:
            return Change(len(group), after)
        mine = set(group.channels.tolist())
        for place in group.dimensions:
            dim = self.graph.parameters[place.parameter][place.dim]
            # A dimension of this group alone shows how many there were.
            if not isinstance(dim, int) and mine.issuperset(dim.tolist()):
                before = self.shape(place.parameter)[0][place.dim]
                return Change(before * len(group) // len(dim), after)
        return Change(None, after)


def make_basis(pruned: nn.Module, original: nn.Module | None) -> Basis:
    """Analyse the original, or without it the pruned model.

    Raises:
        FxpruneError: `pruned` has no plan, or was not made from `original`.
    """
    notes, tensors = pruning_notes(pruned), named_tensors(pruned)
    architecture = notes.original

    def of_pruned() -> Basis:
        graph = original_graph(pruned, pruned)
        return Basis(graph, np.ones(graph.num_channels, dtype=bool), tensors, architecture, whole=False)

    if original is None:
        return of_pruned()
    difference = architecture.misfit(named_tensors(original))
    if not difference:
        graph = original_graph(original, pruned)
        difference = architecture.difference(fingerprint(graph.module))
    if difference:
        raise FxpruneError(
            f"original (a {type(original).__name__}) is not what this {architecture.model} was pruned from: "
            f"{difference}"
        )
    try:
        alive = alive_channels(graph, notes.plan)
    except FxpruneError:
        if notes.stages:
            # After the first pruning, channels may have been free of each other that the original ties.
            return of_pruned()
        raise
    for group in graph.groups:
        if notes.plan.gone.issuperset(place.parameter for place in group.dimensions):
            alive[group.channels] = False
    return Basis(graph, alive, tensors, architecture, whole=True)

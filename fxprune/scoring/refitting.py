"""Layers refitted as channels that they read are removed: Optimal Brain Surgeon (Hassibi and Stork, NeurIPS 1992).

Instead of one weight, all that read a channel are removed at once, and the errors of a layer's outputs are weighted by
their squared gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fxprune.channels import ChannelGraph, Group, Ids, Scores
from fxprune.layers.contraction import Contraction

__all__ = ["Change", "Reader", "Refit"]

# On the diagonal of the inverse, where inputs are removed: they cost nothing.
_REMOVED = 1e30


@dataclass(frozen=True, eq=False)
class Change:
    """Another weight for a layer.

    Attributes:
        contraction: the layer.
        weight: instead of its own.
        added: to its outputs (outputs,).
    """

    contraction: Contraction
    weight: Tensor
    added: Tensor


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over channels.

    Attributes:
        node: the name of its node.
        contraction: what it is.
        channels: the channel of each input (inputs,); `within` a group, its place there, and -1 outside of the group.
        mean: of the inputs (inputs,).
        second_moments: mean squares of the inputs (inputs,).
        covariance: of the inputs in the half of the samples that judges (inputs, inputs), in float32.
        inverse: of the shrunk covariance in the half that is fitted to (inputs, inputs).
        own: the weight in the model's shape and type.
        roots: of the outputs' mean squared gradients (outputs, 1, 1).
        weight: `own` (outputs, inputs, taps), rows times `roots`.
    """

    node: str
    contraction: Contraction
    channels: Ids
    mean: Tensor
    second_moments: Tensor
    covariance: Tensor
    inverse: Tensor
    own: Tensor
    roots: Tensor
    weight: Tensor

    def within(self, graph: ChannelGraph, group: Group) -> Reader | None:
        """The same layer as it reads one group; None where it does not, or reads a channel twice."""
        places = np.full(graph.num_channels, -1, dtype=np.int64)
        places[group.channels] = np.arange(len(group))
        channels = places[self.channels]
        read = channels[channels >= 0]
        if not len(read) or len(np.unique(read)) < len(read):
            return None
        return replace(self, channels=channels)

    def raw_cost(self) -> float:
        """The sum of what removing each of the group's channels costs, each alone and without refitting."""
        cost = self.weight.square().sum((0, 2)) * self.second_moments
        return float(cost[torch.from_numpy(self.channels >= 0)].sum())

    def without(self, places: Ids) -> Change:
        """The layer refitted without these places of the group; what is added keeps the mean of its outputs."""
        refit = Refit(self)
        refit.remove(places)
        # The loss does not depend on outputs whose root is zero.
        change = (refit.weight - self.weight) / self.roots.clamp_min(1e-30)
        added = -(change.sum(2) @ self.mean)
        own = self.contraction.by_outputs(self.own)
        changed = own + change.reshape(own.shape).to(own)
        return Change(self.contraction, self.contraction.by_outputs(changed), added.to(own))


class Refit:
    """A layer's weight as the places of a group are removed; the others take over what they can.

    Attributes:
        weight: as `Reader.weight`, refitted.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._inverse = reader.inverse.clone()
        self.weight = reader.weight.clone()
        # What has changed (outputs * taps, inputs) times the judging covariance; None until the error is asked for.
        self._products: Tensor | None = None
        self._error = 0.0

    def add_costs(self, costs: Scores) -> None:
        """Add what removing each place would cost after refitting, to costs (places,)."""
        read = self._reader.channels >= 0
        mine = self.weight.square().sum((0, 2)) / self._inverse.diagonal()
        costs[self._reader.channels[read]] += mine.numpy()[read]

    def error(self) -> float:
        """What all that was removed costs, on the half of the samples that judges."""
        if self._products is None:
            # A score needs no more digits.
            change = _rows(self._reader.weight - self.weight).float()
            self._products = change @ self._reader.covariance
            self._error = float((self._products * change).sum())
        return self._error

    def remove(self, places: Ids) -> None:
        """Remove places of the group."""
        gone = torch.from_numpy(np.flatnonzero(np.isin(self._reader.channels, places)))
        if not len(gone):
            return
        columns = self._inverse[:, gone]
        shift = torch.linalg.solve(columns[gone], columns.T)
        self._judge(gone, shift)
        self.weight.sub_(torch.einsum("okt,ki->oit", self.weight[:, gone], shift))
        self._inverse.sub_(columns @ shift)
        self.weight[:, gone] = 0
        self._inverse[gone] = 0
        self._inverse[:, gone] = 0
        self._inverse[gone, gone] = _REMOVED

    def _judge(self, gone: Tensor, shift: Tensor) -> None:
        """Keep the error up to date: what these inputs gave is spread over the others as `shift` says."""
        if self._products is None:
            return
        spread, lost = shift.float(), _rows(self.weight[:, gone]).float()
        judged = spread @ self._reader.covariance
        before = (lost * (self._products @ spread.T)).sum()
        self._error += float(2 * before + ((lost.T @ lost) * (judged @ spread.T)).sum())
        self._products.addmm_(lost, judged)


def _rows(weight: Tensor) -> Tensor:
    """(outputs, inputs, taps) as (outputs * taps, inputs)."""
    return weight.movedim(1, 2).flatten(0, 1)

"""Scores from data: what removing a channel costs once the layers that read it have been refitted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Group, Ids, Scores
from fxprune.compensation.holdout import split_apart
from fxprune.data import Batch, Batches, placeholder_values, running_on
from fxprune.layers.contraction import Contraction, contraction_of, find_parameter
from fxprune.layers.gate_places import GatePlace, gate_places
from fxprune.progress import Progress, silent
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.scoring.measured import Change, calibrate_costs
from fxprune.scoring.sensitivity import fisher_scores, output_losses, per_cost

__all__ = ["surgeon_scores"]

_CHUNK = 16
# Positions of one sample are alike: no more of them count as independent.
_INDEPENDENT = 8
# A group is taken apart in so many rounds; within one, channels are judged one by one.
_ROUNDS = 40
_GONE = 1e30
# Samples of each half on which some cuts of each group are measured; fewer where there are many groups.
_MEASURED = 8
_MEASURED_IN_ALL = 400


def surgeon_scores(
    graph: ChannelGraph,
    data: Any,
    *,
    flops_power: float = 1.0,
    damping: float = 1e-2,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Second order with refitting: what the loss gains when a channel goes and the others take over what they can.

    A channel that others can be summed to costs little, though the loss depends on it: `fxprune.compensate` puts the
    sum there. Each group is taken apart greedily; a channel's score is its cost at its turn. Covariances of a layer's
    inputs are shrunk to their diagonal by inputs / (inputs + samples): with fewer samples than inputs every channel
    would seem to be a sum of the others. For the same reason one half of the samples says what others take over, and
    the other half, of samples that are not alike, what is lost then. Costs are scaled to `fisher_scores`, group by
    group; what no convolution or linear layer reads keeps those. Then a quarter, half and three quarters of each group
    are taken out, alone, with the layers refitted, and what the outputs lose is measured on a few samples of the half
    that judges: costs become the geometric mean of what they were and what was measured. (Optimal Brain Surgeon:
    Hassibi and Stork, NeurIPS 1992; here for channels, output errors weighted by their squared gradients.)

    Args:
        graph: the analysed model.
        data: see `fxprune.data`; labels may be missing.
        flops_power: scores are divided by this power of the FLOPs that a channel costs.
        damping: added to covariances, relative to the mean variance.
        seed: of the directions, where there are no labels.
        progress: is told of the samples done, then of the groups.

    Returns:
        Float array with one entry per channel number, not negative.
    """
    scores = fisher_scores(graph, data, seed=seed, progress=progress)
    walk = _walked(graph, data, seed)
    steps, done = (2 if walk.judges is None else 4) * len(graph.groups), itertools.count(1)

    def on_step() -> None:
        progress("refit", next(done), steps, {})

    # Either half judges what was fitted to the other.
    halves = []
    for turned in (False, True):
        readers = list(walk.readers(damping, turned))
        costs = _judged(graph, readers, scores, on_step)
        if walk.judges is not None:
            mine, judges = partial(_of_group, graph, readers), walk.judges[not turned]
            with in_eval_without_grad(graph.module):
                costs = calibrate_costs(graph, costs, mine, walk.found, judges, on_step)
        halves.append(costs)
    return per_cost(graph, (halves[0] + halves[1]) / 2, flops_power)


def _of_group(graph: ChannelGraph, readers: list[_Reader], group: Group) -> list[_Reader]:
    return [local for reader in readers if (local := reader.within(graph, group)) is not None]


def _judged(graph: ChannelGraph, readers: list[_Reader], fisher: Scores, on_step: Callable[[], None]) -> Scores:
    scores: Scores = fisher.copy()
    for group in graph.groups:
        on_step()
        mine = _of_group(graph, readers, group)
        if mine:
            scores[group.channels] = _taken_apart(mine, len(group), float(fisher[group.channels].sum()))
    return scores


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that sums over channels.

    Attributes:
        node: its node.
        channels: channel of each input; in a group, its place there, -1 for another group's.
        mean: of the inputs (inputs,).
        moments: mean squares of the inputs (inputs,).
        covariance: of the inputs in one half of the samples (inputs, inputs), in float32.
        inverse: of the shrunk covariance in the other half (inputs, inputs).
        whole: the weight (outputs, inputs, taps), rows times the root of the output's mean squared gradient.
        weight: what refitting has made of it.
        own: the weight as it is, in the model's own shape and type.
        roots: by which the rows of `whole` are multiplied (outputs, 1, 1).
    """

    node: str
    channels: Ids
    mean: Tensor
    moments: Tensor
    covariance: Tensor
    inverse: Tensor
    whole: Tensor
    weight: Tensor
    own: Tensor
    alias_roots: Tensor

    def within(self, graph: ChannelGraph, group: Group) -> _Reader | None:
        """A copy for taking a group apart; None where the layer does not read it, or reads a channel twice."""
        places = np.full(graph.num_channels, -1, dtype=np.int64)
        places[group.channels] = np.arange(len(group))
        mine = places[self.channels]
        read = mine[mine >= 0]
        if not len(read) or len(np.unique(read)) < len(read):
            return None
        return replace(self, channels=mine, inverse=self.inverse.clone(), weight=self.whole.clone())

    def costs(self) -> Tensor:
        """What the removal of each input costs after refitting (inputs,)."""
        return self.weight.square().sum((0, 2)) / self.inverse.diagonal()

    def error(self) -> float:
        """What all that was removed costs, on the samples."""
        # Most of the time goes here, and a score needs no more digits.
        change = (self.whole - self.weight).movedim(1, 2).flatten(0, 1).float()
        return float(((change @ self.covariance) * change).sum())

    def raw_cost(self) -> float:
        """What removing each of the group's channels alone, without refitting, costs in all."""
        cost = self.weight.square().sum((0, 2)) * self.moments
        return float(cost[torch.from_numpy(self.channels >= 0)].sum())

    def without(self, places: Ids) -> Change:
        """The weight refitted without these channels, and what keeps the mean of the outputs; this stays as it is."""
        other = replace(self, inverse=self.inverse.clone(), weight=self.whole.clone())
        other.remove(places)
        # The loss does not depend on rows without a root.
        change = (other.weight - self.whole) / self.alias_roots.clamp_min(1e-30)
        added = -(change.sum(2) @ self.mean)
        return self.own + change.reshape(self.own.shape).to(self.own), added.to(self.own)

    def remove(self, places: Ids) -> None:
        """Take channels out; the others' weights take over."""
        gone = torch.from_numpy(np.flatnonzero(np.isin(self.channels, places)))
        if not len(gone):
            return
        columns = self.inverse[:, gone]
        shift = torch.linalg.solve(columns[gone], columns.T)
        self.weight.sub_(torch.einsum("okt,ki->oit", self.weight[:, gone], shift))
        self.inverse.sub_(columns @ shift)
        self.weight[:, gone] = 0
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        self.inverse[gone, gone] = _GONE


def _taken_apart(readers: list[_Reader], size: int, fisher: float) -> Scores:
    """Costs of a group's channels, each at its turn, cheapest first; never falling, summing up from `fisher`.

    Which goes next, and what the others become, is judged on one half of the samples; what that costs, on the other.
    """
    scale = fisher / max(sum(reader.raw_cost() for reader in readers), 1e-30)
    left = np.ones(size, dtype=bool)
    scores, highest, spent = np.zeros(size), 0.0, 0.0
    step = math.ceil(size / _ROUNDS)
    while left.any():
        costs = np.zeros(size)
        for reader in readers:
            read = reader.channels >= 0
            costs[reader.channels[read]] += reader.costs().numpy()[read]
        costs[~left] = np.inf
        chosen = np.argsort(costs, kind="stable")[: min(step, int(left.sum()))]
        for reader in readers:
            reader.remove(chosen)
        before, spent = spent, sum(reader.error() for reader in readers)
        highest = max(highest, scale * (spent - before) / len(chosen))
        scores[chosen] = highest
        left[chosen] = False
    return scores


def _walked(graph: ChannelGraph, data: Any, seed: int) -> _Walk:
    nodes = {node.name: node for node in graph.module.graph.nodes}
    places: dict[str, tuple[GatePlace, Contraction]] = {}
    for place in gate_places(graph):
        found = contraction_of(nodes[place.node], graph.module)
        if found is not None and found.groups == 1 and found.input.name == place.argument:
            places[place.node] = place, found
    walk = _Walk(graph, places)
    random = torch.Generator().manual_seed(seed)
    with in_eval_without_grad(graph.module):
        for batch in Batches(data):
            first, second = split_apart(graph.module, batch.on_device_of(graph.module), 0.5, seed)
            walk.judged_by(first, second, len(graph.groups))
            # The places of a single sample are shared out between both halves.
            sides = {(0, 1): first} if second is None else {(0,): first, (1,): second}
            for halves, samples in sides.items():
                for part in samples.split(_CHUNK):
                    walk.read(part, random, halves)
    return walk


class _Moments:
    """Sums over rows of inputs."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows (rows, inputs)."""
        self.count += len(rows)
        self._sum += rows.sum(0).double().cpu()
        self._products += (rows.T @ rows).double().cpu()

    def mean(self) -> Tensor:
        """Of the rows (inputs,)."""
        return torch.as_tensor(self._sum / self.count)

    def about(self, centre: Tensor) -> Tensor:
        """Mean products of the differences from a centre (inputs, inputs)."""
        mean = self.mean()
        second = torch.as_tensor(self._products / self.count)
        return second - torch.outer(mean, centre) - torch.outer(centre, mean) + torch.outer(centre, centre)


class _Walk(fx.Interpreter):
    """Runs the model and adds up the second moments of layers' inputs and the squared gradients of their outputs."""

    def __init__(self, graph: ChannelGraph, places: dict[str, tuple[GatePlace, Contraction]]) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self._places = places
        self.found = {name: found for name, (_, found) in places.items()}
        self.judges: tuple[Batch, Batch] | None = None
        self._samples = 0
        self._into: tuple[int, ...] = ()
        self._outputs: dict[str, Tensor] = {}
        self._halves: dict[str, tuple[_Moments, _Moments]] = {name: (_Moments(), _Moments()) for name in places}
        self._squares: dict[str, Tensor | float] = dict.fromkeys(places, 0.0)

    def judged_by(self, first: Batch, second: Batch | None, groups: int) -> None:
        """Keep the first samples of both halves, each of which judges what is fitted to the other."""
        if second is not None and self.judges is None:
            count = min(_MEASURED, max(2, _MEASURED_IN_ALL // max(groups, 1)))
            self.judges = first.rows(0, count), second.rows(0, count)

    def read(self, batch: Batch, random: torch.Generator, halves: tuple[int, ...]) -> None:
        """Add one batch, its rows shared out between these halves."""
        self._outputs, self._into = {}, halves
        self._samples += batch.size
        with torch.enable_grad():
            with running_on(batch):
                outputs = self.run(initial_env=placeholder_values(self.graph, batch))
            if not self._outputs:
                return
            for loss in output_losses(outputs, batch.labels, 1, random):
                gradients = torch.autograd.grad(loss, list(self._outputs.values()), allow_unused=True)
        for name, gradient in zip(self._outputs, gradients, strict=True):
            if gradient is not None:
                dim = 1 if self._places[name][1].kernel else gradient.dim() - 1
                others = [d for d in range(gradient.dim()) if d != dim]
                self._squares[name] += gradient.square().sum(others).double().cpu()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, with gradients from the first layer that is read on."""
        out = super().run_node(n)
        if n.name not in self._places:
            return out
        place, found = self._places[n.name]
        x: Tensor = self.env[found.input].detach().movedim(place.dim, -1)
        rows = x.reshape(-1, x.shape[-1])
        for half, part in zip(self._into, rows.tensor_split(len(self._into)), strict=True):
            self._halves[n.name][half].add(part)
        if not out.requires_grad:
            out = out.detach().requires_grad_(True)
        self._outputs[n.name] = out
        # What follows may write in place.
        return out.clone()

    def readers(self, damping: float, turned: bool) -> Iterator[_Reader]:
        """What was read, for each layer that the loss depends on; `turned` for the halves in each other's place."""
        for name, (place, found) in self._places.items():
            squares, (fitted, judged) = self._squares[name], self._halves[name][:: -1 if turned else 1]
            if not isinstance(squares, Tensor) or not fitted.count or not judged.count:
                continue
            mean, sampled = fitted.mean(), fitted.about(fitted.mean())
            width = len(sampled)
            independent = min(fitted.count, _INDEPENDENT * self._samples / 2)
            covariance = sampled * (independent / (independent + width))
            diagonal = sampled.diagonal().clamp_min(0)
            covariance.diagonal().copy_(diagonal + damping * diagonal.mean().clamp_min(1e-30))
            second = (fitted.about(0 * mean) + judged.about(0 * mean)).diagonal() / 2
            own = find_parameter(self.module, found.weight).detach()
            weight = own.double().cpu().reshape(own.shape[0], width, -1)
            alias_roots = (squares / self._samples).sqrt()[:, None, None]
            whole = weight * alias_roots
            yield _Reader(
                node=name,
                channels=place.channels,
                mean=mean,
                moments=second,
                covariance=judged.about(mean).float(),
                inverse=torch.linalg.inv(covariance),
                whole=whole,
                weight=whole,
                own=own,
                alias_roots=alias_roots,
            )

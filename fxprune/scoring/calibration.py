"""Costs of groups, calibrated by what is lost in fact: some cuts of each group, alone and refitted, on samples.

A second order takes the errors at different positions for independent. In late layers, whose positions are averaged,
they add up, and a large cut is no small change. So the groups are calibrated against each other; the order within a
group stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import fx

from fxprune.channels import ChannelGraph, Group, Scores
from fxprune.data import Batch, placeholder_values, run_model, running_on
from fxprune.errors import CannotScoreError, FxpruneError
from fxprune.losses import distillation_loss
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.running.one_node import run_node, with_values
from fxprune.scoring.refitting import Change, Reader

__all__ = ["calibrate_costs"]

# The fractions of a group's channels that are removed together. Not tuned.
_CUTS = (0.25, 0.5, 0.75)


def calibrate_costs(
    graph: ChannelGraph,
    costs: Scores,
    readers: Callable[[Group], Sequence[Reader]],
    samples: Batch,
    on_step: Callable[[], None] = lambda: None,
) -> Scores:
    """The geometric mean of given and measured costs.

    Measured costs alone are too high for large cuts, since layers further on are refitted, too.

    Args:
        graph: the analysed model.
        costs: of each channel at its turn, the cheapest of a group first (number of channels,).
        readers: the layers that read a group; the costs of a group without any stay as they are.
        samples: to measure on; neither costs nor refitted layers should come from them.
        on_step: called for each group.

    Raises:
        CannotScoreError: the model does not run on the samples.
    """
    calibrated: Scores = costs.copy()
    factors, measured = [], []
    with torch.no_grad(), in_eval_without_grad(graph.module):
        meter = _Meter(graph.module, samples)
        for group in graph.groups:
            on_step()
            mine = readers(group)
            if not mine:
                continue
            places = np.argsort(costs[group.channels], kind="stable")
            order = group.channels[places]
            counts = sorted({max(1, round(cut * len(group))) for cut in _CUTS})
            lost = [meter.loss({reader.node: reader.without(places[:count]) for reader in mine}) for count in counts]
            calibrated[order] = _rescaled(costs[order], counts, lost)
            factors.append(max(calibrated[order].sum(), 1e-30) / max(costs[order].sum(), 1e-30))
            measured.append(order)
    if measured:
        # In the same unit as the costs that stay.
        calibrated[np.concatenate(measured)] /= float(np.exp(np.mean(np.log(factors))))
    return calibrated


def _rescaled(costs: Scores, counts: Sequence[int], lost: Sequence[float]) -> Scores:
    """Costs in ascending order, those between two counts scaled by one factor; still ascending."""
    scaled = costs.copy()
    factor, start, before = 1.0, 0, 0.0
    for count, loss in zip(counts, lost, strict=True):
        expected = float(costs[start:count].sum())
        found = max(loss - before, 1e-2 * loss)
        if expected > 0 and found > 0 and np.isfinite(found):
            factor = (found / expected) ** 0.5
        scaled[start:count] = costs[start:count] * factor
        start, before = count, max(before, loss)
    scaled[start:] = costs[start:] * factor
    ascending: Scores = np.maximum.accumulate(scaled)
    return ascending


class _Meter:
    """Measures how far the outputs for some samples move."""

    def __init__(self, module: fx.GraphModule, samples: Batch) -> None:
        self._module = module
        self._parts = samples.split()
        self._outputs = [run_model(module, part, CannotScoreError) for part in self._parts]

    def loss(self, changes: Mapping[str, Change]) -> float:
        """The distillation loss per sample of the model with other weights in some layers, by node name."""
        total, changed = 0.0, _ChangedModel(self._module, changes)
        for part, outputs in zip(self._parts, self._outputs, strict=True):
            try:
                loss = distillation_loss(changed.outputs(part), outputs, temperature=1.0)
            except FxpruneError as error:
                raise CannotScoreError(f"its outputs have other sizes with other weights: {error}") from error
            total += float(loss) * part.size
        return total / sum(part.size for part in self._parts)


class _ChangedModel(fx.Interpreter):
    """Runs a model in which some layers have other weights.

    Args:
        module: the traced model.
        changes: by the name of the layer's node.
    """

    def __init__(self, module: fx.GraphModule, changes: Mapping[str, Change]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._changes = changes

    def outputs(self, batch: Batch) -> object:
        """The outputs for a batch.

        Raises:
            CannotScoreError: the model does not run on it.
        """
        with running_on(batch, CannotScoreError):
            return self.run(initial_env=placeholder_values(self.graph, batch))

    def run_node(self, n: fx.Node) -> object:
        """Run one node, with its other weight where it has one."""
        if n.name not in self._changes:
            return super().run_node(n)
        change = self._changes[n.name]
        weight, added = change.weight, change.added
        args, kwargs = with_values(n, lambda x: weight if x.target == change.contraction.weight else self.env[x])
        if n.op == "call_module":
            out = torch.func.functional_call(self.fetch_attr(str(n.target)), {"weight": weight}, args, kwargs)
        else:
            out = run_node(n, args, kwargs)
        return out + (added.reshape(-1, *(1,) * len(change.contraction.kernel)))

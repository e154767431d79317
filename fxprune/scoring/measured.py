"""Costs set right by what is lost in fact: some cuts of each group, alone and refitted, on samples.

A second order takes the errors at different positions for independent. In late layers, whose positions are averaged,
they add up, and large cuts are no small changes. So groups are set right against each other; the order within stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Group, Ids, Scores
from fxprune.data import Batch, placeholder_values, run_model, running_on
from fxprune.layers.contraction import Contraction
from fxprune.losses import distillation_loss

__all__ = ["Change", "Refitted", "calibrate_costs"]

# Parts of a group's channels that are taken out together.
_CUTS = (0.25, 0.5, 0.75)
_CHUNK = 16
# A refitted weight, and what is added to the outputs.
Change = tuple[Tensor, Tensor]


class Refitted(Protocol):
    """A layer that reads a group, and can be refitted to fewer channels."""

    @property
    def node(self) -> str:
        """The name of its node."""

    def without(self, places: Ids) -> Change:
        """Its weight, and an addition to its outputs, without these places of the group."""


def calibrate_costs(
    graph: ChannelGraph,
    costs: Scores,
    readers: Callable[[Group], Sequence[Refitted]],
    contractions: Mapping[str, Contraction],
    samples: Batch,
    on_step: Callable[[], None] = lambda: None,
) -> Scores:
    """Costs whose sums lie halfway, in logarithms, between what they are and what is measured.

    Measured costs alone are too high for large cuts, since layers further on are refitted, too.

    Args:
        graph: the analysed model, in eval.
        costs: of each channel at its turn, those of a group from the cheapest on (number of channels,).
        readers: those of a group; none where nothing can be refitted, and its costs stay.
        contractions: what the nodes of the readers are.
        samples: that measure; neither costs nor refitted layers should come from them.
        told: called for each group.
    """
    right: Scores = costs.copy()
    factors, measured = [], []
    with torch.no_grad():
        parts = samples.split(_CHUNK)
        wanted = [run_model(graph.module, part) for part in parts]
        for group in graph.groups:
            on_step()
            mine = readers(group)
            if not mine:
                continue
            places = np.argsort(costs[group.channels], kind="stable")
            order = group.channels[places]
            counts = sorted({max(1, round(cut * len(group))) for cut in _CUTS})
            lost = []
            for count in counts:
                changes = {reader.node: reader.without(places[:count]) for reader in mine}
                lost.append(_loss(graph, changes, contractions, parts, wanted))
            right[order] = _rescaled(costs[order], counts, lost)
            factors.append(max(right[order].sum(), 1e-30) / max(costs[order].sum(), 1e-30))
            measured.append(order)
    if measured:
        # In the same unit as the costs that stay.
        right[np.concatenate(measured)] /= float(np.exp(np.mean(np.log(factors))))
    return right


def _rescaled(costs: Scores, counts: Sequence[int], lost: Sequence[float]) -> Scores:
    """Costs in order, those between two counts scaled together; never falling."""
    right = costs.copy()
    factor, start, before = 1.0, 0, 0.0
    for count, loss in zip(counts, lost, strict=True):
        expected = float(costs[start:count].sum())
        found = max(loss - before, 1e-2 * loss)
        if expected > 0 and found > 0 and np.isfinite(found):
            factor = (found / expected) ** 0.5
        right[start:count] = costs[start:count] * factor
        start, before = count, max(before, loss)
    right[start:] = costs[start:] * factor
    rising: Scores = np.maximum.accumulate(right)
    return rising


def _loss(
    graph: ChannelGraph,
    changes: Mapping[str, Change],
    contractions: Mapping[str, Contraction],
    parts: Sequence[Batch],
    wanted: Sequence[Any],
) -> float:
    """How far the outputs move, per sample."""
    total, changed = 0.0, _Changed(graph.module, changes, contractions)
    for part, outputs in zip(parts, wanted, strict=True):
        with running_on(part):
            moved = changed.run(initial_env=placeholder_values(graph.module.graph, part))
        total += float(distillation_loss(moved, outputs, temperature=1.0)) * part.size
    return total / sum(part.size for part in parts)


class _Changed(fx.Interpreter):
    """Runs a model in which some layers have other weights."""

    def __init__(
        self, module: fx.GraphModule, changes: Mapping[str, Change], contractions: Mapping[str, Contraction]
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._changes, self._contractions = changes, contractions

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, with its other weight where it has one."""
        if n.name not in self._changes:
            return super().run_node(n)
        found, (weight, added) = self._contractions[n.name], self._changes[n.name]
        args, kwargs = fx.node.map_arg(
            (n.args, n.kwargs),
            lambda x: weight if x.op == "get_attr" and x.target == found.weight else self.env[x],
        )
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            out = torch.func.functional_call(module, {"weight": weight}, args, kwargs)
        else:
            out = n.target(*args, **kwargs)  # type: ignore[operator]
        return out + (added.reshape(-1, *(1,) * len(found.kernel)) if found.kernel else added)

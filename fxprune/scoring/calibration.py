"""Costs of groups, calibrated by what is lost in fact: some cuts of each group, alone and refitted, on samples.

Layers that cannot be refitted, as the two whose outputs attention multiplies, are measured as they are.

A second order takes the errors at different positions for independent. In late layers, whose positions are averaged,
they add up, and a large cut is no small change. So the groups are calibrated against each other; the order within a
group stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Group, Ids, Scores
from fxprune.data import Batch, placeholder_values, run_model, running_on
from fxprune.errors import CannotScoreError, FxpruneError
from fxprune.layers.contraction import find_parameter
from fxprune.losses import distillation_loss, separated
from fxprune.planning.plan import plan_keeping
from fxprune.running.copies import named_tensors
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.running.one_node import run_node, with_values
from fxprune.running.regions import is_boundary
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
        readers: the layers that read a group; without any, its channels are set to zero.
        samples: to measure on; neither costs nor refitted layers should come from them.
        on_step: called for each group.

    Raises:
        CannotScoreError: the model does not run on the samples.
    """
    calibrated: Scores = costs.copy()
    factors, measured = [], []
    with torch.no_grad(), in_eval_without_grad(graph.module):
        meter, measurable = _Meter(graph.module, samples), []
        for group in graph.groups:
            mine = readers(group)
            nodes = {reader.node for reader in mine} or meter.without(graph, group.channels[:1]).keys()
            if nodes:
                measurable.append((meter.first(nodes), group, mine))
            else:
                on_step()
        # From the front to the back of the model, so that what is in front of a change runs once.
        for _, group, mine in sorted(measurable, key=lambda found: found[0]):
            on_step()
            places = np.argsort(costs[group.channels], kind="stable")
            order = group.channels[places]
            changes = {
                count: {reader.node: reader.without(places[:count]) for reader in mine}
                or meter.without(graph, order[:count])
                for count in sorted({max(1, round(cut * len(group))) for cut in _CUTS})
            }
            counts = [count for count, changed in changes.items() if changed]
            lost = [meter.loss(changes[count]) for count in counts]
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


@dataclass(frozen=True, eq=False)
class _Zeroed:
    """A node that reads tensors of which some channels are zero.

    Attributes:
        tensors: by the identity of the model's own.
    """

    tensors: Mapping[int, Tensor]


class _Meter:
    """Measures how far the outputs for some samples move."""

    def __init__(self, module: fx.GraphModule, samples: Batch) -> None:
        self._module = module
        self._parts = samples.split()
        self._outputs = [separated(module, run_model(module, part, CannotScoreError)) for part in self._parts]
        self._starts = [_Start(module, part) for part in self._parts]
        self._places = {node.name: place for place, node in enumerate(module.graph.nodes)}
        self._read: dict[int, list[str]] = {}
        modules = dict(module.named_modules())
        for node in module.graph.nodes:
            if node.op == "get_attr":
                self._read.setdefault(id(find_parameter(module, str(node.target))), []).append(node.name)
            elif node.op == "call_module":
                for tensor in named_tensors(modules[str(node.target)]).values():
                    self._read.setdefault(id(tensor), []).append(node.name)
        if any(map(is_boundary, module.graph.nodes)):
            # What is entered in front of a node is not left there.
            self._places = dict.fromkeys(self._places, 0)

    def first(self, nodes: Collection[str]) -> int:
        """The place of the first of some nodes in the graph."""
        return min(self._places[name] for name in nodes)

    def without(self, graph: ChannelGraph, channels: Ids) -> dict[str, Change | _Zeroed]:
        """The nodes that read tensors of these channels, which are zero; none where that would empty a tensor."""
        alive = graph.all_but(())
        alive[channels] = False
        plan, zeroed = plan_keeping(graph, alive), dict[int, Tensor]()
        if not all(stays for by_dim in plan.kept.values() for stays in by_dim.values()):
            return {}
        for name in plan.kept:
            own = find_parameter(self._module, name)
            zeroed[id(own)] = own.detach().clone()
            plan.zero_(name, zeroed[id(own)])
        changed = _Zeroed(zeroed)
        return {node: changed for tensor in zeroed for node in self._read.get(tensor, ())}

    def loss(self, changes: Mapping[str, Change | _Zeroed]) -> float:
        """The distillation loss per sample of the model with other weights in some layers, by node name.

        It is faster if the first of these is not in front of that of the call before.
        """
        total, changed = 0.0, _ChangedModel(self._module, changes)
        for part, start, outputs in zip(self._parts, self._starts, self._outputs, strict=True):
            try:
                with running_on(part, CannotScoreError):
                    found = changed.run(initial_env=start.values_before(self.first(changes)))
                loss = distillation_loss(separated(self._module, found), outputs, temperature=1.0)
            except FxpruneError as error:
                raise CannotScoreError(f"its outputs have other sizes with other weights: {error}") from error
            total += float(loss) * part.size
        return total / sum(part.size for part in self._parts)


class _Start(fx.Interpreter):
    """Runs a model up to a node, and on from there.

    Args:
        module: the traced model.
        batch: what it runs on.
    """

    def __init__(self, module: fx.GraphModule, batch: Batch) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._batch, self._nodes = batch, list(module.graph.nodes)
        self._restart()

    def _restart(self) -> None:
        self.env, self._done = dict(placeholder_values(self.graph, self._batch)), 0

    def values_before(self, place: int) -> dict[fx.Node, Any]:
        """The values of all nodes in front of a place, None for those that nothing reads from there on.

        They are copies, since the model may write into them.
        """
        if place < self._done:
            self._restart()
        for node in self._nodes[self._done : place]:
            if node not in self.env:
                self.env[node] = self.run_node(node)
                for unused in self.user_to_last_uses.get(node, ()):
                    self.env[unused] = None
        self._done = place
        return dict(zip(self.env, copy.deepcopy(list(self.env.values())), strict=True))


class _ChangedModel(fx.Interpreter):
    """Runs a model in which some layers have other weights.

    Args:
        module: the traced model.
        changes: by the name of the layer's node.
    """

    def __init__(self, module: fx.GraphModule, changes: Mapping[str, Change | _Zeroed]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._changes = changes

    def run_node(self, n: fx.Node) -> object:
        """Run one node, with its other weight where it has one."""
        if n.name not in self._changes:
            return super().run_node(n)
        change = self._changes[n.name]
        if isinstance(change, _Zeroed):
            return self._run_zeroed(n, change)
        weight, added = change.weight, change.added
        args, kwargs = with_values(n, lambda x: weight if x.target == change.contraction.weight else self.env[x])
        if n.op == "call_module":
            out = torch.func.functional_call(self.fetch_attr(str(n.target)), {"weight": weight}, args, kwargs)
        else:
            out = run_node(n, args, kwargs)
        return out + (added.reshape(-1, *(1,) * len(change.contraction.kernel)))

    def _run_zeroed(self, n: fx.Node, change: _Zeroed) -> object:
        own = self.fetch_attr(str(n.target))
        if n.op == "get_attr":
            return change.tensors[id(own)]
        named = {name: change.tensors.get(id(tensor), tensor) for name, tensor in named_tensors(own).items()}
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return torch.func.functional_call(own, named, args, kwargs)

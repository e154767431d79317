"""Costs are calibrated between groups by what cuts of each do to the outputs."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scoring.nets import small
from torch import Tensor, nn

import fxprune
from fxprune.channels import Group, Scores
from fxprune.data import Batch
from fxprune.layers.contraction import contraction_of
from fxprune.losses import distillation_loss
from fxprune.planning.plan import plan_keeping
from fxprune.scoring.calibration import _Meter, _rescaled, calibrate_costs
from fxprune.scoring.layer_statistics import collect_statistics
from fxprune.scoring.refitting import Change, Reader
from fxprune.scoring.sensitivity import fisher_scores


def test_costs_become_the_geometric_mean_of_what_they_are_and_what_is_measured() -> None:
    costs = np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0])
    right = _rescaled(costs, [2, 4, 6], [2.0 * 4, 2.0 * 4 + 4.0 * 9, 2.0 * 4 + 4.0 * 9 + 8.0 * 16])
    assert right.tolist() == pytest.approx([2.0, 2.0, 6.0, 6.0, 16.0, 16.0, 32.0, 32.0])
    # If a larger cut loses less, that is noise: costs never fall.
    assert (np.diff(_rescaled(costs, [2, 4, 6], [4.0, 3.0, float("inf")])) >= 0).all()


def calibrated(graph: fxprune.ChannelGraph, data: Tensor, costs: Scores, unread: bool = False) -> Scores:
    layers = collect_statistics(graph, [Batch((data,), {})], seed=0).readers(1e-2, 0)

    def readers(group: Group) -> list[Reader]:
        return [] if unread else [local for layer in layers if (local := layer.within(graph, group)) is not None]

    return calibrate_costs(graph, costs, readers, Batch((data[32:],), {}))


def test_a_group_that_costs_more_than_was_thought_keeps_more() -> None:
    graph, data = small()
    first, second = graph.groups
    costs = fisher_scores(graph, [data])
    # As if the second order took the first group for a thousandth of what it is.
    costs[first.channels] *= 1e-3

    def share(scores: Scores) -> float:
        return float(scores[first.channels].sum() / scores[second.channels].sum())

    for unread in (False, True):
        assert share(calibrated(graph, data, costs, unread)) > 5 * share(costs)


class _Attention(nn.Module):
    """No layer can be refitted to what becomes of the queries and keys."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, width), nn.Linear(8, width)
        self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).mT).softmax(-1)
        return self.head(self.out(weights @ self.value(x)).mean(1))


def test_what_no_layer_reads_costs_what_is_lost_without_it() -> None:
    torch.manual_seed(0)
    model = _Attention().eval()
    with torch.no_grad():
        for layer in (model.query, model.key):
            layer.weight.mul_(4)
    data = torch.randn(40, 6, 8)
    graph = fxprune.analyze(fxprune.trace(model, data[:1]))
    (read_by_none,) = [g for g in graph.groups if {d.parameter for d in g.dimensions} >= {"query.weight", "key.weight"}]
    costs = fisher_scores(graph, [data])
    too_low = costs.copy()
    too_low[read_by_none.channels] *= 1e-4
    right, mended = calibrated(graph, data, costs), calibrated(graph, data, too_low)
    others = np.concatenate([group.channels for group in graph.groups if group is not read_by_none])

    def share(scores: Scores) -> float:
        return float(scores[read_by_none.channels].sum() / scores[others].sum())

    assert share(too_low) < 1e-3 * share(right)
    assert share(mended) > 20 * share(too_low)
    # Nothing of the model has changed.
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), graph.module.state_dict().values(), strict=True)
    )


class _Awkward(nn.Module):
    """What is read after a change is written in place before, and after; and a part may run in a region."""

    def __init__(self, region: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.region = region

    def forward(self, x: Tensor) -> Tensor:
        kept = self.first(x).relu_()
        with torch.autocast("cpu", torch.bfloat16) if self.region else nullcontext():
            y = self.second(kept)
            kept.add_(1)
            y = self.third(y + kept)
        return (y + kept).float().mean((2, 3))


@pytest.mark.parametrize("region", [False, True], ids=["in place", "in a region"])
def test_a_run_from_the_first_change_on_is_a_whole_run(region: bool) -> None:
    torch.manual_seed(0)
    graph = fxprune.analyze(fxprune.trace(_Awkward(region).eval(), torch.zeros(1, 3, 8, 8)))
    layers = {node.name: contraction_of(node, graph.module) for node in graph.module.graph.nodes}
    changes = [Change(found, torch.randn(3, 3, 3, 3), torch.zeros(3)) for found in layers.values() if found is not None]
    names = [name for name, found in layers.items() if found is not None]
    assert len(names) == 3
    samples = Batch((torch.randn(20, 3, 8, 8),), {})
    with torch.no_grad():
        meter = _Meter(graph.module, samples)
        # Forwards, on the same place again, and back.
        for chosen in ([0], [1], [1], [2], [0, 2]):
            given = {names[k]: changes[k] for k in chosen}
            whole = _Meter(graph.module, samples)
            whole._places = dict.fromkeys(whole._places, 0)
            assert meter.loss(given) == whole.loss(given) > 0


@pytest.mark.parametrize("width", [2, 3])
def test_a_channel_of_those_that_no_layer_reads_stays(width: int) -> None:
    data = torch.randn(40, 6, 8)
    graph = fxprune.analyze(fxprune.trace(_Attention(width).eval(), data[:1]))
    assert any(len(group) == width for group in graph.groups)
    costs = calibrated(graph, data, fisher_scores(graph, [data]))
    assert np.isfinite(costs).all()
    assert (costs >= 0).all()


def test_without_channels_is_the_model_in_which_they_are_zero() -> None:
    torch.manual_seed(0)
    model, data = _Attention().eval(), torch.randn(20, 6, 8)
    graph = fxprune.analyze(fxprune.trace(model, data[:1]))
    assert len(graph.groups) > 1
    with torch.no_grad():
        meter = _Meter(graph.module, Batch((data,), {}))
        for group in graph.groups:
            alive = graph.all_but(())
            alive[group.channels[:3]] = False
            plan, masked = plan_keeping(graph, alive), copy.deepcopy(graph.module)
            for name, tensor in masked.state_dict().items():
                plan.zero_(name, tensor)
            lost = distillation_loss(masked(data), model(data), temperature=1.0)
            assert meter.loss(meter.without(graph, group.channels[:3])) == pytest.approx(float(lost), rel=1e-4)

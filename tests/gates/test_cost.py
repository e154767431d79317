"""What open gates cost, its derivative, and the shift of the logits that meets a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from invariant import image
from layer_nets import Dense
from torch import nn

import fxprune
from fxprune.gates.cost import GateCost, cost_of_gates, flops_balance


def _cost() -> GateCost:
    """A net of 8 and 6 hidden channels: 3 * a + a * b + b * 2 FLOPs, 24 + 48 + 12 in all."""
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = fxprune.analyze(fxprune.trace(net, torch.zeros(1, 3)))
    return cost_of_gates(graph, graph.groups)


def test_the_cost_of_open_gates_is_that_of_the_channels_they_keep() -> None:
    cost = _cost()
    assert (cost.total, cost.sizes) == (84, (8, 6))
    logits = np.array([1.0] * 5 + [-1.0] * 3 + [1.0] * 2 + [-1.0] * 4)
    assert cost.fraction(logits) == (3 * 5 + 5 * 2 + 2 * 2) / 84
    assert cost.alive(logits)[cost.channels].tolist() == (logits > 0).tolist()
    outside = np.setdiff1d(np.arange(cost.polynomial.num_channels), cost.channels)
    assert cost.alive(logits)[outside].all()


def test_the_gradient_is_what_a_gate_costs_times_the_slope_of_its_gate() -> None:
    cost = _cost()
    gradient = cost.gradient(np.array([0.0] * 5 + [-1.0] * 3 + [0.0, 0.0] + [1.0] * 4))
    # Of the first group none is open, of the second four: a channel of the first costs 3 + 4, one of the second 2.
    slope = 0.25 / 0.3
    assert gradient[:5].tolist() == pytest.approx([slope * 7 / 84] * 5)
    assert gradient[8:10].tolist() == pytest.approx([slope * 2 / 84] * 2)
    assert 0 < gradient[5] < gradient[0]


@pytest.mark.parametrize("target", [84, 83, 60, 42, 33])
def test_the_shift_is_the_smallest_that_meets_the_target(target: int) -> None:
    cost, logits = _cost(), np.random.default_rng(0).normal(size=14)
    shifted = logits - cost.excess(logits, target)
    opened = np.flatnonzero(shifted > 0)
    assert cost.polynomial(cost.alive(shifted)) <= target
    if target < 84:
        more = shifted.copy()
        more[shifted == shifted[shifted < 0].max()] = 1.0
        assert cost.polynomial(cost.alive(more)) > target
    else:
        assert len(opened) == 14


def test_the_best_channel_of_a_group_stays_open_whatever_the_target() -> None:
    cost, logits = _cost(), np.concatenate([np.arange(8.0), np.arange(6.0) - 50])
    shifted = logits - cost.excess(logits, 0.0)
    assert np.flatnonzero(shifted > 0).tolist() == [7, 13]


def test_a_balanced_step_has_no_part_along_the_flops() -> None:
    task, flops = torch.tensor([-3.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 0.5])
    weight = flops_balance(task, flops)
    assert weight > 0
    assert float(((task + weight * flops) * flops).sum()) == pytest.approx(0.0, abs=1e-6)
    assert flops_balance(-task, flops) == 0.0, "a task that wants fewer FLOPs needs no weight"
    assert flops_balance(task, torch.zeros(3)) == 0.0


class _Blocks(nn.Module):
    """Two residual branches of 5 hidden channels on a stream of 4: 12 + 2 * 40 + 8 FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


def test_a_closed_block_costs_nothing_and_its_gate_is_pulled_by_all_it_costs() -> None:
    graph = fxprune.analyze(fxprune.trace(_Blocks(), torch.zeros(1, 3)))
    cost = cost_of_gates(graph, graph.groups, graph.blocks)
    assert (cost.total, len(cost.blocks)) == (100, 2)
    logits = np.ones(len(cost.channels))
    assert cost.fraction(logits) == 1
    logits[-2:] = [-0.1, 0.0]
    assert cost.fraction(logits) == 0.2
    gradient, slope = cost.gradient(logits), 0.25 / 0.3
    assert gradient[-1].item() == pytest.approx(slope * 0.4)
    assert 0 < gradient[-2] < gradient[-1]
    hidden = np.isin(cost.channels, np.concatenate([group.channels for group in graph.groups if len(group) == 5]))
    assert (gradient[torch.from_numpy(hidden)] == 0).all(), "in blocks that are gone channels save nothing"


def test_all_blocks_may_go_where_groups_keep_a_channel() -> None:
    graph = fxprune.analyze(fxprune.trace(_Blocks(), torch.zeros(1, 3)))
    cost = cost_of_gates(graph, graph.groups, graph.blocks)
    logits = np.random.default_rng(0).normal(size=len(cost.channels))
    alive = cost.alive(logits - cost.excess(logits, 0.0))
    assert not alive[[block.channel for block in graph.blocks]].any()
    assert all(alive[group.channels].any() for group in graph.groups)
    shifted = logits - cost.excess(logits, 60)
    assert 0 < cost.fraction(shifted) <= 0.6


def test_a_concatenated_block_takes_its_channels_along() -> None:
    graph = fxprune.analyze(fxprune.trace(Dense(), image()))
    cost = cost_of_gates(graph, graph.groups, graph.blocks)
    for number, block in enumerate(graph.blocks, start=-len(graph.blocks)):
        logits = np.ones(len(cost.channels))
        logits[number] = 0
        assert (cost.alive(logits) == graph.all_but([block])).all()
        # The pull is what its nodes and its channels cost.
        marginal = graph.flops.marginal(graph.all_but([block]))[block.channels].sum() / cost.total
        assert cost.gradient(logits)[number].item() == pytest.approx(marginal * 0.25 / 0.3, rel=1e-5)

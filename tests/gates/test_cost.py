"""What open gates cost, its derivative, and the shift of the logits that meets a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
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

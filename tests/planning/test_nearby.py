"""Where units are coarse, plans of several other widths at once use what one unit at a time leaves of a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.planning.nearby import best_nearby


def plain(widths: list[int], groups: int, stride: int = 1) -> nn.Module:
    """Convolutions with group norms of a few large groups, which go as a whole."""
    layers: list[nn.Module] = []
    before = 3
    for k, width in enumerate(widths):
        layers += [
            nn.Conv2d(before, width, 3, stride if k % 2 else 1, padding=1),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
        ]
        before = width
    return nn.Sequential(*layers, nn.Conv2d(before, 5, 1))


class Residual(nn.Module):
    """Its inner width has a few large groups."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, inner, 3, padding=1), nn.GroupNorm(groups, inner)
        self.second = nn.Conv2d(inner, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.second(self.norm(self.first(x)).relu())
        return result


def residual(inner: list[int], groups: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(groups, 32))
    return nn.Sequential(stem, *(Residual(32, width, groups) for width in inner), nn.Conv2d(32, 5, 1))


class Normed(nn.Module):
    """Its inner width has a norm over channels, and goes as a last resort."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(width, inner, 1),
            nn.GroupNorm(1, inner),
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.second(self.norm(self.first(x)).relu())
        return result


NETS = {
    "a coarse stream": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), *(Normed(8, n) for n in (7, 9, 7, 9)), nn.Conv2d(8, 5, 1)
    ),
    "two groups": lambda: plain([16, 24, 32, 32, 48, 64], 2, 2),
    "three groups": lambda: plain([12, 24, 24, 36, 48, 48], 3),
    "residuals of two groups": lambda: residual([16, 32, 48, 64, 24], 2),
    "residuals of four groups": lambda: residual([16, 32, 48, 64], 4),
}


def graph_of(name: str) -> fxprune.ChannelGraph:
    return fxprune.analyze(fxprune.trace(NETS[name](), torch.zeros(1, 3, 16, 16)))


def all_costs(graph: fxprune.ChannelGraph) -> list[int]:
    """Of every plan."""
    costs = []
    for counts in itertools.product(*(range(1, len(group.channels) + 1) for group in graph.groups)):
        alive = np.ones(graph.num_channels, dtype=bool)
        for group, count in zip(graph.groups, counts, strict=True):
            alive[group.channels[count:]] = False
        costs.append(graph.flops(alive))
    return costs


@pytest.mark.parametrize("name", NETS)
def test_a_plan_of_coarse_units_uses_most_of_the_budget_or_as_much_as_any(name: str) -> None:
    graph = graph_of(name)
    costs = all_costs(graph)
    for fraction in (0.5, 0.7, 0.3):
        target = int(fraction * graph.flops.total)
        best = max(cost for cost in costs if cost <= target)
        for seed in range(8):
            scores = np.random.default_rng(seed).random(graph.num_channels)
            plan = fxprune.make_plan(graph, scores, flops=fraction)
            assert min(best, 0.995 * target) <= plan.flops <= target


def test_the_plan_most_alike_that_uses_enough_is_taken() -> None:
    graph = graph_of("two groups")
    queues = [[group.channels[:1]] for group in graph.groups]
    whole = np.ones(graph.num_channels, dtype=bool)
    one_gone = whole.copy()
    one_gone[queues[2][0]] = False
    cost = graph.flops(one_gone)
    # The plan itself is good enough.
    assert np.array_equal(best_nearby(graph.flops, queues, one_gone, cost, cost), one_gone)
    # It may come back, and is all that fits.
    assert np.array_equal(best_nearby(graph.flops, queues, one_gone, graph.flops.total, graph.flops.total), whole)
    # Nothing else costs as much.
    all_gone = whole.copy()
    all_gone[np.concatenate([queue[0] for queue in queues])] = False
    assert graph.flops(best_nearby(graph.flops, queues, all_gone, cost, cost)) == cost

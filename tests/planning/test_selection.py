"""Which channels stay: within every budget, whatever the sizes of units."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import fxprune
from fxprune.channels import Scores
from fxprune.channels.polynomial import build_largest, build_polynomial, term
from fxprune.planning.budgets import Budget
from fxprune.planning.selection import choose, fewest, units_of


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 2))
    return fxprune.analyze(fxprune.trace(model, torch.zeros(1, 4)))


@pytest.fixture(scope="module")
def scores(graph: fxprune.ChannelGraph) -> Scores:
    return np.random.default_rng(0).random(graph.num_channels)


def every(graph: fxprune.ChannelGraph) -> npt.NDArray[np.bool_]:
    return np.ones(graph.num_channels, dtype=bool)


@pytest.mark.parametrize(("round_to", "stay"), [(1, {10: 1, 7: 1}), (4, {10: 4, 7: 4}), (10, {10: 10, 7: 7})])
def test_units_leave_one_channel_or_one_multiple_of_each_group(
    graph: fxprune.ChannelGraph, scores: Scores, round_to: int, stay: dict[int, int]
) -> None:
    units = units_of(graph.groups, scores, round_to)
    for number, group in enumerate(graph.groups):
        sizes = [len(units.of(k)) for k in range(len(units)) if units.group[k] == number]
        assert len(group) - sum(sizes) == stay[len(group)]
        # The first unit takes the remainder, so that the others leave multiples.
        assert all(size == round_to for size in sizes[1:])
        assert not sizes or (len(group) - sizes[0]) % round_to == 0


def test_units_go_in_the_order_of_their_scores(graph: fxprune.ChannelGraph, scores: Scores) -> None:
    units = units_of(graph.groups, scores, 1)
    assert np.all(np.diff(scores[units.channels]) >= 0)


def test_the_fewest_channels_are_one_of_each_group(graph: fxprune.ChannelGraph, scores: Scores) -> None:
    alive = fewest(units_of(graph.groups, scores, 1), every(graph))
    assert [int(alive[group.channels].sum()) for group in graph.groups] == [1, 1]
    assert all(alive[frozen.channels].all() for frozen in graph.frozen)


def test_a_plan_holds_every_budget_and_none_is_made_for_one_out_of_reach(
    graph: fxprune.ChannelGraph, scores: Scores
) -> None:
    units = units_of(graph.groups, scores, 1)
    total, least = graph.flops.total, graph.flops(fewest(units, every(graph)))
    for target in range(least, total + 1):
        budgets = [Budget(graph.flops, target), Budget(graph.flops, (target + total) // 2)]
        alive = choose(budgets, units, every(graph))
        assert alive is not None
        assert all(budget.holds(alive) for budget in budgets)
    assert choose([Budget(graph.flops, least - 1)], units, every(graph)) is None


def test_without_groups_only_the_whole_model_is_a_plan(graph: fxprune.ChannelGraph, scores: Scores) -> None:
    units = units_of([], scores, 1)
    whole = choose([Budget(graph.flops, graph.flops.total)], units, every(graph))
    assert whole is not None
    assert whole.all()
    assert choose([Budget(graph.flops, graph.flops.total - 1)], units, every(graph)) is None


def test_what_does_not_add_to_the_largest_sum_comes_back(graph: fxprune.ChannelGraph, scores: Scores) -> None:
    first, second = (group.channels for group in graph.groups)
    largest = build_largest([[term(3, first)], [term(1, second)]], graph.num_channels)
    units = units_of(graph.groups, scores, 1)
    for budgets in ([Budget(largest, 12)], [Budget(graph.flops, graph.flops.total), Budget(largest, 12)]):
        alive = choose(budgets, units, every(graph))
        assert alive is not None
        assert [int(alive[channels].sum()) for channels in (first, second)] == [4, 7]


def test_two_budgets_are_used_together(graph: fxprune.ChannelGraph, scores: Scores) -> None:
    first, second = (group.channels for group in graph.groups)
    budgets = [Budget(build_polynomial([term(channels)], graph.num_channels), 3) for channels in (first, second)]
    alive = choose(budgets, units_of(graph.groups, scores, 1), every(graph))
    assert alive is not None
    assert [int(alive[channels].sum()) for channels in (first, second)] == [3, 3]

"""Budgets are fractions up to 1 and counts above; what they are not is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from invariant import masks, net, plan_for
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, FxpruneWarning, UnreachableBudgetError
from fxprune.channels.polynomial import build_polynomial, term
from fxprune.planning.budgets import Request, as_patterns, budgets_of, flops_target, latency_share, parameters_of


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return fxprune.analyze(fxprune.trace(model, torch.zeros(1, 4)))


@pytest.mark.parametrize(
    ("flops", "latency", "target"),
    [
        (0.5, None, 24),
        (1, None, 48),
        (0.51, None, 24),
        (20, None, 20),
        (20.9, None, 20),
        (100, None, 100),
        (np.float32(0.25), None, 12),
        (np.int64(30), None, 30),
        (None, None, 24),
        (None, 0.7, 48),
        (None, 1, 24),
        (0.5, 0.7, 24),
    ],
)
def test_the_most_flops(graph: fxprune.ChannelGraph, flops: Any, latency: float | None, target: int) -> None:
    assert graph.flops.total == 48
    assert flops_target(graph, Request(flops, latency)) == target


NUMBER = "must be a number: a fraction in (0, 1], or a count above 1"
POSITIVE = "must be positive and finite: a fraction in (0, 1], or a count above 1"


@pytest.mark.parametrize(
    ("flops", "message"),
    [
        (0, f"flops (=0) {POSITIVE}"),
        (-0.5, f"flops (=-0.5) {POSITIVE}"),
        (math.nan, f"flops (=nan) {POSITIVE}"),
        (math.inf, f"flops (=inf) {POSITIVE}"),
        ("0.5", f"flops (='0.5') {NUMBER}"),
        (True, f"flops (=True) {NUMBER}"),
        ([0.5], f"flops (=[0.5]) {NUMBER}"),
    ],
)
def test_numbers_that_are_no_budget_are_refused(flops: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=f"^{re.escape(message)}$"):
        Request(flops)
    with pytest.raises(FxpruneError, match=f"^{re.escape(message.replace('flops', 'params'))}$"):
        Request(params=flops)
    with pytest.raises(FxpruneError, match=f"^{re.escape(message.replace('flops', 'memory'))}$"):
        Request(memory=flops)


@pytest.mark.parametrize(
    "latency", [0, -0.1, 1.5, math.nan, "fast", True, "3", "0ms", "-3ms", "3 minutes", "1e-3s", "ms"]
)
def test_a_latency_that_is_no_fraction_and_no_time_is_refused(latency: Any) -> None:
    message = r"^latency \(=.*\) must be a fraction of the model's, in \(0, 1\], or a time such as '3ms'$"
    with pytest.raises(FxpruneError, match=message):
        Request(latency=latency)


@pytest.mark.parametrize("value", [0, -8, 1.5, "8", True, None])
def test_a_multiple_that_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(FxpruneError, match=r"^round_to \(=.*\) must be a whole number of at least 1, or 'auto'$"):
        Request(round_to=value)


def test_one_pattern_is_not_taken_for_its_letters() -> None:
    assert as_patterns("head") == ("head",)
    assert as_patterns(name for name in ("a", "b")) == ("a", "b")


def test_a_latency_is_a_budget_once_channels_are_timed(graph: fxprune.ChannelGraph) -> None:
    request = Request(0.5, latency=0.6)
    assert [budget.target for budget in budgets_of(graph, request)] == [24]
    timed = fxprune.time_channels(graph, repeats=1, warmup=0)
    assert timed.latency is not None
    flops, time = budgets_of(timed, request)
    assert (flops.target, time.target) == (24, math.floor(0.6 * timed.latency.total))
    whole, half = np.ones(graph.num_channels, dtype=bool), np.arange(graph.num_channels) % 2 == 0
    assert not flops.holds(whole)
    assert not time.holds(whole)
    assert flops.holds(half)


def test_a_count_of_flops_is_for_one_sample() -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    shares = []
    for batch in (1, 8):
        small = fxprune.prune(model, 96, example_inputs=torch.zeros(batch, 4), method="l2", compensate=False)
        plan = fxprune.plan_of(small)
        assert plan.flops <= 96 * batch
        shares.append(plan.flops / plan.flops_before)
    assert shares == [0.5, 0.5]


def test_an_example_of_one_dimension_is_one_sample() -> None:
    graph = fxprune.analyze(fxprune.trace(nn.Linear(4, 8), torch.zeros(4)))
    assert flops_target(graph, Request(20)) == 20


@pytest.mark.parametrize("params", [0.4, 120])
def test_parameters_are_a_budget(params: float) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x).relu())
        return self.head(x + self.c(x))

    parts = {"stem": nn.Linear(4, 8), "a": nn.Linear(8, 16), "b": nn.Linear(16, 8), "c": nn.Linear(8, 8)}
    model = net(forward, **parts, head=nn.Linear(8, 2))
    graph = fxprune.analyze(fxprune.trace(model, torch.zeros(1, 4)))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameters_of(graph).total == count
    for alive in masks(graph, 5):
        small = fxprune.rewrite(graph, plan_for(graph, alive))
        assert parameters_of(graph)(alive) == sum(parameter.numel() for parameter in small.parameters())
    small = fxprune.prune(model, params=params, example_inputs=torch.zeros(1, 4), method="l2", compensate=False)
    left, most = sum(parameter.numel() for parameter in small.parameters()), params if params > 1 else params * count
    assert 0.8 * most <= left <= most
    with pytest.raises(UnreachableBudgetError, match=r"a budget of 5 parameters .* cannot be reached.*Raise params"):
        fxprune.make_plan(graph, fxprune.scores(graph, "l2"), params=5)


@pytest.mark.parametrize(
    ("time", "share"), [("3ms", 0.3), ("0.003s", 0.3), ("3000 us", 0.3), ("3000µs", 0.3), (".02s", 2)]
)
def test_a_time_has_a_unit(graph: fxprune.ChannelGraph, time: str, share: float) -> None:
    timed = replace(graph, latency=build_polynomial([term(10**13)], graph.num_channels))
    assert latency_share(timed, Request(latency=time)) == pytest.approx(share)
    assert budgets_of(timed, Request(latency=time))[-1].target == pytest.approx(share * 10**13, rel=1e-12)
    assert flops_target(timed, Request(latency=time)) == timed.flops.total


def test_a_time_above_what_the_model_takes_says_so(graph: fxprune.ChannelGraph) -> None:
    timed = replace(graph, latency=build_polynomial([term(10**13)], graph.num_channels))
    with pytest.warns(FxpruneWarning, match=r"latency \(='20ms'\) is above what the model has, 10 ms for the example"):
        plan = fxprune.make_plan(timed, fxprune.scores(timed), latency="20ms")
    assert plan.latency_target == 1
    assert not plan.kept

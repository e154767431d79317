"""Budgets are fractions up to 1 and counts above; what they are not is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune import FxpruneError
from fxprune.planning.budgets import Request, as_patterns, budgets_of, flops_target


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
    assert flops_target(graph, flops, latency) == target


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
def test_flops_that_are_no_budget_are_refused(graph: fxprune.ChannelGraph, flops: Any, message: str) -> None:
    for act in (lambda: Request(flops), lambda: flops_target(graph, flops)):
        with pytest.raises(FxpruneError, match=f"^{re.escape(message)}$"):
            act()


@pytest.mark.parametrize("latency", [0, -0.1, 1.5, math.nan, "fast", True])
def test_a_latency_that_is_no_fraction_is_refused(latency: Any) -> None:
    with pytest.raises(FxpruneError, match=r"^latency \(=.*\) must be a fraction of the model's, in \(0, 1\]$"):
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

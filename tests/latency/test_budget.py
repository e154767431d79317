"""A budget of time is kept as measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from invariant import image
from slow import kept
from torch import nn

import fxprune
from fxprune import FxpruneError
from fxprune.latency.budget import plan_for_latency
from fxprune.planning.budgets import Request

pytestmark = pytest.mark.usefixtures("clock")


def test_a_budget_of_time_is_kept_as_measured(model: nn.Module) -> None:
    small = fxprune.prune(model, latency=0.5, example_inputs=image(batch=1, size=8), compensate=False)
    whole, part = fxprune.measure_latency([model, small], image(batch=1, size=8), repeats=9)
    assert part.seconds / whole.seconds == pytest.approx(15.5 / 32, abs=0.02)
    assert kept(small, "waits") in (15, 16)
    assert kept(small, "runs") == 32
    assert fxprune.verify(model, small) <= 1e-9
    assert fxprune.plan_of(small).latency_target == 0.5


def test_a_time_in_milliseconds_is_kept_as_measured(model: nn.Module) -> None:
    whole = fxprune.measure_latency(model, image(batch=1, size=8), repeats=9).seconds
    limit = f"{0.6 * whole * 1e3:.4f}ms"
    small = fxprune.prune(model, latency=limit, example_inputs=image(batch=1, size=8), compensate=False)
    part = fxprune.measure_latency(small, image(batch=1, size=8), repeats=9).seconds
    assert 0.5 * whole < part <= 0.6 * whole
    assert fxprune.plan_of(small).latency_target == pytest.approx(0.6, abs=0.02)
    with pytest.raises(FxpruneError, match=r"cannot be reached: the lowest is"):
        fxprune.prune(model, latency="1us", example_inputs=image(batch=1, size=8), compensate=False)


def test_with_all_the_time_the_flops_decide(model: nn.Module) -> None:
    small = fxprune.prune(model, 0.6, latency=1, example_inputs=image(batch=1, size=8), compensate=False)
    plan = fxprune.plan_of(small)
    assert 0.59 * plan.flops_before < plan.flops <= 0.6 * plan.flops_before
    assert kept(small, "waits") < 8


def measured_by(overhead: float, steps: int = 0) -> Callable[..., tuple[fxprune.Latency, ...]]:
    """In place of `measure_latency`: a part of the time does not depend on the FLOPs, the rest goes by them."""

    def measure(models: list[Any], *_: Any) -> tuple[fxprune.Latency, ...]:
        plan = fxprune.plan_of(models[1])
        share = plan.flops / plan.flops_before
        seconds = overhead + (1 - overhead) * (np.ceil(steps * share) / steps if steps else share)
        return tuple(fxprune.Latency(s, 0.0, 1, 0, 1, 1, "cpu", "float32", "contiguous") for s in (1.0, seconds))

    return measure


def test_what_is_fast_enough_is_not_cut_far_below_a_step(
    model: nn.Module, graph: fxprune.ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.latency.budget.measure_latency", measured_by(0.0, steps=2))
    predicted = replace(graph, latency=graph.flops)
    plan = plan_for_latency(predicted, fxprune.scores(predicted), model, Request(latency=0.9))
    assert 0.46 < plan.flops / plan.flops_before <= 0.5


@pytest.mark.parametrize(("overhead", "latency"), [(0.0, 0.5), (0.3, 0.5), (0.6, 0.75), (-0.5, 0.5)])
def test_a_few_measurements_suffice_where_the_prediction_is_far_off(
    model: nn.Module, graph: fxprune.ChannelGraph, monkeypatch: pytest.MonkeyPatch, overhead: float, latency: float
) -> None:
    monkeypatch.setattr("fxprune.latency.budget.measure_latency", measured_by(overhead))
    predicted = replace(graph, latency=graph.flops)
    plan = plan_for_latency(predicted, fxprune.scores(predicted), model, Request(latency=latency))
    assert 0.95 * latency <= overhead + (1 - overhead) * plan.flops / plan.flops_before <= latency


def test_a_budget_that_is_out_of_reach_is_no_reason_to_score_otherwise(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.latency.budget.measure_latency", measured_by(0.9))
    with pytest.raises(FxpruneError, match=r"80.0% of the model's cannot be reached: the lowest that was measured"):
        fxprune.prune(model, latency=0.8, data=image(batch=8, size=8))


def test_times_that_vary_are_not_trusted_silently(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsteady(*args: Any, **kwargs: Any) -> Any:
        return tuple(replace(each, spread=each.seconds) for each in fxprune.measure_latency(*args, **kwargs))

    monkeypatch.setattr("fxprune.latency.budget.measure_latency", unsteady)
    with pytest.warns(fxprune.FxpruneWarning, match="interquartile range of 100% of it"):
        fxprune.prune(model, latency=0.7, example_inputs=image(batch=1, size=8), compensate=False)


@pytest.mark.parametrize(
    "settings", [{"latency": 60}, {"latency": 0.5, "ignore": "nothing"}, {"latency": 1, "flops": -1}]
)
def test_what_cannot_be_is_said_before_anything_is_timed(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    def time_nothing(*_: Any) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr("fxprune.api.time_channels", time_nothing)
    with pytest.raises(FxpruneError, match=r"=60|'nothing'|=-1"):
        fxprune.prune(model, example_inputs=image(batch=1, size=8), **settings)

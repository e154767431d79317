"""Time is measured node by node, and channels are chosen by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariant import image, net
from slow import SECONDS, kept
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.channels import Group
from fxprune.channels.polynomial import Term, build_polynomial
from fxprune.latency.channels import _polynomial

pytestmark = pytest.mark.usefixtures("clock")


def group_of(graph: fxprune.ChannelGraph, name: str) -> Group:
    return next(g for g in graph.groups if any(d.parameter.startswith(name) for d in g.dimensions))


def test_a_channel_costs_the_time_of_the_nodes_that_it_passes(graph: fxprune.ChannelGraph) -> None:
    assert graph.latency is not None
    every = np.ones(graph.num_channels, dtype=bool)
    assert graph.latency.total / 1e15 == pytest.approx(32 * SECONDS, rel=0.01)
    femtoseconds = graph.latency.marginal(every)
    waiting, running = group_of(graph, "waits").channels, group_of(graph, "runs").channels
    assert femtoseconds[waiting] / 1e15 == pytest.approx(SECONDS, rel=0.01)
    assert femtoseconds[running].max() < femtoseconds[waiting].min() / 100
    few = every.copy()
    few[waiting[1:]] = False
    assert graph.latency(few) / 1e15 == pytest.approx(SECONDS, rel=0.05)


def test_measuring_changes_nothing_and_flops_stay(model: nn.Module) -> None:
    traced = fxprune.trace(model.train(), image(batch=1, size=8))
    before = {name: value.clone() for name, value in traced.state_dict().items()}
    graph = fxprune.analyze(traced)
    timed = fxprune.time_channels(graph, batch_size=2, threads=1, repeats=1, warmup=0)
    assert graph.latency is None
    assert timed.flops is graph.flops
    assert timed.module is traced
    assert traced.training
    assert all(torch.equal(value, before[name]) for name, value in traced.state_dict().items())
    assert timed.price is timed.latency
    assert graph.price is graph.flops


@pytest.mark.parametrize("method", ["relevance", "fisher", "surgeon"])
def test_what_waits_goes_first(model: nn.Module, graph: fxprune.ChannelGraph, method: str) -> None:
    data = None if method == "relevance" else image(batch=16, size=8)
    plain = fxprune.analyze(graph.module)
    widths = []
    for each in (plain, graph):
        plan = fxprune.make_plan(each, fxprune.scores(each, method, data=data), flops=0.6)
        pruned = fxprune.rewrite(each, plan)
        assert plan.flops <= 0.6 * plan.flops_before
        widths.append((kept(pruned, "waits"), kept(pruned, "runs")))
    assert widths[1][0] < min(widths[0][0], 8)
    assert widths[1][1] > widths[0][1]


def test_a_plan_keeps_both_budgets(graph: fxprune.ChannelGraph) -> None:
    assert graph.latency is not None
    scores = fxprune.scores(graph)
    for flops, latency in ((None, 0.5), (0.5, 0.9), (0.9, 0.4), (0.6, 0.35)):
        plan = fxprune.make_plan(graph, scores, flops=flops, latency=latency)
        alive = np.ones(graph.num_channels, dtype=bool)
        for name, dims in plan.kept.items():
            for d, stays in dims.items():
                channels = graph.parameters[name][d]
                assert not isinstance(channels, int)
                alive[np.delete(channels, stays)] = False
        assert graph.latency(alive) <= latency * graph.latency.total
        assert plan.flops == graph.flops(alive) <= (flops or 1) * plan.flops_before
        assert plan.latency_target == latency


def test_gates_are_learned_at_the_price_of_time(graph: fxprune.ChannelGraph) -> None:
    gates = fxprune.learn_gates(graph, [image(batch=8, size=8)] * 4, flops=0.5, start="relevance", progress=False)
    assert graph.latency is not None
    open_gates = np.ones(graph.num_channels, dtype=bool)
    for group in graph.groups:
        open_gates[group.channels] = gates.scores[group.channels] > 0
    assert gates.flops == graph.latency(open_gates) / graph.latency.total <= 0.5


def test_the_time_of_what_gives_several_tensors_goes_by_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.latency.channels.time", time)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    graph = fxprune.time_channels(fxprune.analyze(fxprune.trace(Recurrent(), torch.randn(2, 100, 4))), repeats=3)
    assert graph.latency is not None
    one = np.zeros(graph.num_channels, dtype=bool)
    one[[group.channels[0] for group in graph.groups]] = True
    assert graph.latency(one) < 0.5 * graph.latency.total


@pytest.mark.parametrize(("flops", "latency"), [(0.45, 0.71), (0.47, 0.65), (0.51, 0.7)])
def test_two_budgets_are_met_where_what_comes_back_for_one_breaks_the_other(flops: float, latency: float) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 4, 1))
    graph = fxprune.analyze(fxprune.trace(layers, image(batch=1, size=8)))
    first, second = (group.channels for group in graph.groups)
    terms = (Term(213, (first,)), Term(585, (second,)), Term(1, ()))
    scores = np.ones(graph.num_channels)
    scores[first], scores[second] = (0.54, 0.61, 0.33), (0.31, 0.89)
    timed = replace(graph, latency=build_polynomial(terms, graph.num_channels))
    plan = fxprune.make_plan(timed, scores, flops=flops, latency=latency)
    kept = (len(plan.kept[name].get(0, range(width))) for name, width in (("0.weight", 3), ("1.weight", 2)))
    assert plan.flops <= flops * plan.flops_before
    assert sum(count * cost for count, cost in zip(kept, (213, 585), strict=True)) + 1 <= latency * 1810


def test_the_budget_that_is_kept_is_a_plain_number(graph: fxprune.ChannelGraph) -> None:
    for latency in (np.float32(0.5), 1):
        plan = fxprune.make_plan(graph, fxprune.scores(graph), latency=latency)
        assert type(plan.latency_target) is float


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda graph: fxprune.make_plan(graph, fxprune.scores(graph), latency=0), r"latency \(=0\) must be a fract"),
        (lambda graph: fxprune.make_plan(graph, fxprune.scores(graph), latency=60), r"latency \(=60\) must be a fract"),
        (lambda graph: fxprune.make_plan(graph, fxprune.scores(graph), latency="fast"), "must be a fraction"),
        (
            lambda graph: fxprune.make_plan(graph, fxprune.scores(graph), latency=0.001),
            r"0.1% of the latency cannot be reached: the lowest is predicted to be [\d.]+% with one channel left",
        ),
        (
            lambda graph: fxprune.make_plan(fxprune.analyze(graph.module), fxprune.scores(graph), latency=0.5),
            "needs the time of channels: give what fxprune.time_channels returns",
        ),
        (lambda graph: fxprune.time_channels(graph, repeats=0), r"repeats \(=0\) must be at least 1"),
        (lambda graph: fxprune.time_channels(graph, threads=0), r"threads \(=0\) must be at least 1"),
        (lambda graph: fxprune.time_channels(graph, device="meta"), r"device \(='meta'\) computes nothing"),
    ],
)
def test_errors_say_what_to_do(
    graph: fxprune.ChannelGraph, call: Callable[[fxprune.ChannelGraph], Any], message: str
) -> None:
    with pytest.raises(FxpruneError, match=message):
        call(graph)


def test_gates_that_were_learned_by_flops_do_not_go_on_by_time(graph: fxprune.ChannelGraph, tmp_path: Path) -> None:
    def learn(given: fxprune.ChannelGraph) -> fxprune.Gates:
        data = [image(batch=8, size=8)]
        return fxprune.learn_gates(given, data, start="relevance", checkpoint=tmp_path / "gates", progress=False)

    learn(replace(graph, latency=None))
    with pytest.raises(FxpruneError, match="price"):
        learn(graph)


def test_progress_is_a_function_or_a_bool(model: nn.Module) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image(batch=1, size=8)))
    steps: list[tuple[Any, ...]] = []
    fxprune.time_channels(graph, repeats=2, warmup=0, progress=lambda *step: steps.append(step))
    assert steps == [("measure", 1, 2, {}), ("measure", 2, 2, {})]
    assert fxprune.time_channels(graph, repeats=1, warmup=0, progress=True).latency is not None


def _more_in_training(self: Any, x: Tensor) -> Any:
    x = self.a(x)
    return (self.b(x), self.c(x)) if self.training else self.b(x)


def test_what_runs_in_training_alone_takes_no_time() -> None:
    model = net(_more_in_training, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), c=nn.Conv2d(8, 4, 3)).eval()
    graph = fxprune.analyze(fxprune.trace(model, image()))
    seconds = {node.name: 1.0 if node.name == "c" else 1e-3 for node in graph.module.graph.nodes}
    assert _polynomial(graph, seconds, 0.0, 0.1).total / 1e15 == pytest.approx(0.1)

"""Scores and a budget make a plan: within the budget, never an empty layer, deterministic."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from invariant import image, net, randomise, tokens
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, FxpruneWarning, UnreachableBudgetError
from fxprune.planning.budgets import Request
from fxprune.planning.make import check_reachable, lowest_flops


def convnet(width: int = 48) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2), nn.ReLU(), nn.Conv2d(2 * width, 2, 1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> fxprune.ChannelGraph:
    model = randomise(convnet())
    return fxprune.analyze(fxprune.trace(model, image(size=8).double()))


def widths(plan: fxprune.Plan, graph: fxprune.ChannelGraph) -> dict[str, int]:
    return {name: len(plan.kept.get(name, {}).get(0, range(len(p)))) for name, p in graph.module.named_parameters()}


@pytest.mark.parametrize("flops", [0.05, 0.2, 0.37, 0.5, 0.75, 0.9, 0.99])
def test_a_plan_uses_the_budget_to_within_half_a_percent(graph: fxprune.ChannelGraph, flops: float) -> None:
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=flops)
    assert 0.995 * plan.flops_target <= plan.flops <= plan.flops_target == int(flops * graph.flops.total)
    assert plan.flops_before == graph.flops.total


@pytest.mark.parametrize("flops", [0.2, 0.35, 0.5, 0.75])
@pytest.mark.parametrize("width", [11, 24, 33])
def test_coarse_channels_are_exchanged_until_the_budget_is_used(width: int, flops: float) -> None:
    graph = fxprune.analyze(fxprune.trace(randomise(convnet(width)), image(size=8).double()))
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=flops)
    assert 0.99 * plan.flops_target <= plan.flops <= plan.flops_target


def test_a_budget_above_one_is_a_number_of_flops(graph: fxprune.ChannelGraph) -> None:
    # The example has two samples.
    target = graph.flops.total // 2
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=target / 2)
    assert 0.995 * target <= plan.flops <= target == plan.flops_target
    with pytest.warns(FxpruneWarning, match=r"flops \(=\d+\) is above what the model has"):
        assert fxprune.make_plan(graph, fxprune.scores(graph), flops=10 * graph.flops.total).kept == {}


def test_the_whole_budget_keeps_everything(graph: fxprune.ChannelGraph) -> None:
    for flops in (1, 1.0):
        assert fxprune.make_plan(graph, fxprune.scores(graph), flops=flops).kept == {}


def test_no_group_is_ever_empty(graph: fxprune.ChannelGraph) -> None:
    for method in ("l1", "l2", "random"):
        plan = fxprune.make_plan(graph, fxprune.scores(graph, method), flops=0.03)
        assert all(indices for by_dim in plan.kept.values() for indices in by_dim.values())
        assert min(widths(plan, graph).values()) >= 1


def test_plans_are_deterministic(graph: fxprune.ChannelGraph) -> None:
    plans = [fxprune.make_plan(graph, fxprune.scores(graph, "random", seed=3), flops=0.4) for _ in range(2)]
    assert plans[0] == plans[1]
    again = fxprune.analyze(fxprune.trace(randomise(convnet()), image(size=8).double()))
    first = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.4)
    assert fxprune.make_plan(again, fxprune.scores(again), flops=0.4) == first


def test_equal_scores_make_a_plan_too(graph: fxprune.ChannelGraph) -> None:
    plan = fxprune.make_plan(graph, np.ones(graph.num_channels), flops=0.5)
    assert 0.995 * plan.flops_target <= plan.flops <= plan.flops_target


def test_the_lowest_scores_go(graph: fxprune.ChannelGraph) -> None:
    scores = np.ones(graph.num_channels)
    lowest = graph.groups[0].channels[5:15]
    scores[lowest] = 0.0
    kept = fxprune.make_plan(graph, scores, flops=0.8).kept
    removed = {name: set(range(48)) - set(kept.get(name, {}).get(0, range(48))) for name in ("0.weight", "3.weight")}
    position = {int(channel): k for k, channel in enumerate(graph.parameters["0.weight"][0])}
    assert {position[int(channel)] for channel in lowest} <= removed["0.weight"]


@pytest.mark.parametrize("multiple", [2, 4, 8])
def test_changed_widths_are_multiples(graph: fxprune.ChannelGraph, multiple: int) -> None:
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.5, round_to=multiple)
    assert plan.kept
    assert all(len(kept) % multiple == 0 for by_dim in plan.kept.values() for kept in by_dim.values())
    assert plan.flops <= plan.flops_target


def test_auto_is_what_suits_the_device_or_a_part_of_it(
    graph: fxprune.ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(capability: str, flops: float) -> list[int]:
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
        made = fxprune.make_plan(graph, fxprune.scores(graph), flops=flops, round_to="auto")
        assert made.flops <= made.flops_target
        return [len(kept) for by_dim in made.kept.values() for kept in by_dim.values()]

    # The weights are in float64: 8 of them fill a register of AVX512, 4 one of AVX2.
    assert all(width % 8 == 0 for width in plan("AVX512", 0.5))
    assert all(width % 4 == 0 for width in plan("AVX2", 0.5))
    lowest = min(fraction for fraction in (0.1, 0.05, 0.02, 0.01, 0.005) if _reached(graph, fraction) is not None)
    assert any(width % 8 for width in plan("AVX512", lowest))


def _reached(graph: fxprune.ChannelGraph, flops: float) -> fxprune.Plan | None:
    try:
        return fxprune.make_plan(graph, fxprune.scores(graph), flops=flops)
    except UnreachableBudgetError:
        return None


def test_a_multiple_is_that_of_each_head() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = (each(x).view(*x.shape[:2], 4, 12).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 48))

    parts = {name: nn.Linear(16, 48) for name in "qkv"}
    graph = fxprune.analyze(fxprune.trace(net(forward, **parts, out=nn.Linear(48, 16)), tokens(width=16)))
    heads = [group for group in graph.groups if group.repeats == 4]
    assert heads
    assert all(group.common == 1 for group in heads)
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "l2"), flops=0.8, round_to=4)
    widths = [len(kept) for name in "qkv" for kept in plan.kept.get(f"{name}.weight", {}).values()]
    assert widths
    assert all(width % 16 == 0 for width in widths)


@pytest.mark.parametrize(("least", "round_to", "stay"), [(5, 1, 5), (5, 4, 8), (100, 1, 48)])
def test_some_channels_of_each_group_stay(least: int, round_to: int, stay: int) -> None:
    graph = fxprune.analyze(fxprune.trace(convnet(), image()))
    scores = fxprune.scores(graph, "l2")
    request = Request(1e-9, round_to=round_to, min_channels=least)
    lowest = lowest_flops(graph, request) / graph.flops.total
    just = min(lowest + 1e-9, 1.0)
    plan = fxprune.make_plan(graph, scores, flops=just, round_to=round_to, min_channels=least)
    widths = {len(kept) for by_dim in plan.kept.values() for kept in by_dim.values()}
    assert widths == ({stay} if stay < 48 else set())
    with pytest.raises(UnreachableBudgetError, match=f"with {least} channels left in each group"):
        fxprune.make_plan(graph, scores, flops=0.9 * lowest, round_to=round_to, min_channels=least)


@pytest.mark.parametrize("value", [0, 2.0, True, None])
def test_a_number_of_channels_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(FxpruneError, match=r"min_channels \(=.*\) must be a whole number of at least 1"):
        Request(min_channels=value)


def test_a_multiple_counts_what_flattening_repeats() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.Linear(16 * 36, 2)))
    graph = fxprune.analyze(fxprune.trace(model, image().double()))
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.7, round_to=8)
    assert len(plan.kept["2.weight"][1]) % 8 == 0


@pytest.mark.parametrize("ignore", ["3", "3.weight", ["3", "4"], "[3-4]*"])
def test_ignored_modules_stay_whole(graph: fxprune.ChannelGraph, ignore: str | list[str]) -> None:
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.9, ignore=ignore)
    assert "3.weight" not in plan.kept
    assert 0.995 * plan.flops_target <= plan.flops <= plan.flops_target


def test_a_name_that_is_ignored_covers_all_below_it() -> None:
    model = randomise(net(lambda self, x: self.head(self.body(x)), body=convnet(8), head=nn.Conv2d(2, 2, 1)))
    graph = fxprune.analyze(fxprune.trace(model, image(size=8).double()))
    assert fxprune.make_plan(graph, fxprune.scores(graph), flops=1.0, ignore="body").kept == {}
    with pytest.raises(UnreachableBudgetError, match="cannot be reached"):
        fxprune.make_plan(graph, fxprune.scores(graph), flops=0.9, ignore="body")


def test_last_resort_groups_are_whole_while_the_budget_can_be_met_without_them() -> None:
    block = net(
        lambda self, x: x + self.down(self.up(self.norm(x)).relu()),
        norm=nn.LayerNorm(16), up=nn.Linear(16, 64), down=nn.Linear(64, 16),
    )  # fmt: skip
    model = randomise(nn.Sequential(nn.Linear(4, 16), block, nn.Linear(16, 2)))
    graph = fxprune.analyze(fxprune.trace(model, tokens().double()))
    gentle = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.6)
    assert "0.weight" not in gentle.kept
    harsh = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.08)
    assert "0.weight" in harsh.kept


def test_last_resort_groups_are_cut_where_the_others_leave_much_of_the_budget() -> None:
    block = net(
        lambda self, x: x + self.down(self.norm(self.up(x)).relu()),
        norm=nn.LayerNorm(16), up=nn.Linear(4, 16), down=nn.Linear(16, 4),
    )  # fmt: skip
    model = randomise(nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 2)))
    graph = fxprune.analyze(fxprune.trace(model, tokens().double()))
    # With three of the four channels of the stream, 83.6 % of the FLOPs are left; with two, 67.2 %.
    for flops, cut in ((0.84, False), (0.8, True)):
        plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=flops)
        assert 0.98 * plan.flops_target <= plan.flops <= plan.flops_target
        assert ("1.norm.weight" in plan.kept) == cut


def test_a_budget_out_of_reach_says_what_is_the_lowest_and_what_is_frozen(graph: fxprune.ChannelGraph) -> None:
    scores = fxprune.scores(graph, "l2")
    with pytest.raises(UnreachableBudgetError) as caught:
        fxprune.make_plan(graph, scores, flops=0.001)
    message = str(caught.value)
    found = re.search(r"cannot be reached: the lowest is ([\d,]+) \(([\d.]+)%\)", message)
    assert found, message
    assert "Frozen are 3 channels: model input (_0); 2 channels: model output." in message
    assert "Raise flops, or ignore less." in message
    lowest = int(found[1].replace(",", ""))
    assert fxprune.make_plan(graph, scores, flops=lowest / 2).flops == lowest == lowest_flops(graph, Request())
    with pytest.raises(UnreachableBudgetError, match="cannot be reached"):
        fxprune.make_plan(graph, scores, flops=lowest / 2 - 1)


@pytest.mark.parametrize(
    "request_", [Request(0.3), Request(0.02, round_to=16), Request(0.3, ignore=("0", "3"))], ids=str
)
def test_a_request_is_reachable_just_if_there_is_a_plan(graph: fxprune.ChannelGraph, request_: Request) -> None:
    options = {"flops": request_.flops, "round_to": request_.round_to, "ignore": request_.ignore}
    try:
        fxprune.make_plan(graph, fxprune.scores(graph, "random"), **options)
    except UnreachableBudgetError as error:
        with pytest.raises(UnreachableBudgetError, match=f"^{re.escape(str(error))}$"):
            check_reachable(graph, request_)
    else:
        check_reachable(graph, request_)


def test_a_latency_is_planned_and_checked_on_timed_channels(graph: fxprune.ChannelGraph) -> None:
    with pytest.raises(FxpruneError, match=r"latency \(=0\.5\) needs the time of channels"):
        fxprune.make_plan(graph, fxprune.scores(graph), latency=0.5)
    check_reachable(graph, Request(latency=1e-6))
    timed = fxprune.time_channels(graph, repeats=1, warmup=0)
    with pytest.raises(UnreachableBudgetError, match=r"0\.0% of the latency cannot be reached.* Raise latency"):
        check_reachable(timed, Request(latency=1e-6))


def test_ignored_channels_are_named_if_the_budget_is_out_of_reach(graph: fxprune.ChannelGraph) -> None:
    with pytest.raises(UnreachableBudgetError, match=r"\d+ channels: ignored\. Raise flops"):
        fxprune.make_plan(graph, fxprune.scores(graph), flops=0.2, ignore=["0", "3"])


@pytest.mark.parametrize(("pattern", "names"), [("encodr", "encoder"), ("head.*.x", "head")])
def test_a_pattern_that_matches_nothing_is_refused_with_close_names(pattern: str, names: str) -> None:
    model = net(lambda self, x: self.head(self.encoder(x)), encoder=nn.Linear(4, 8), head=nn.Linear(8, 2))
    graph = fxprune.analyze(fxprune.trace(model, tokens()))
    message = rf"^ignore pattern '{re.escape(pattern)}' matches no module of the model; close names are .*{names}"
    with pytest.raises(FxpruneError, match=message):
        fxprune.make_plan(graph, fxprune.scores(graph), ignore=pattern)


def test_a_model_without_flops_is_refused() -> None:
    graph = fxprune.analyze(fxprune.trace(nn.Sequential(nn.ReLU(), nn.Flatten()), image()))
    with pytest.raises(FxpruneError, match="there is nothing to prune"):
        fxprune.make_plan(graph, np.zeros(graph.num_channels))


def test_blocks_are_left_out_by_name() -> None:
    parts = {"stem": nn.Conv2d(3, 4, 1), "a": nn.Conv2d(4, 8, 1), "b": nn.Conv2d(8, 4, 1)}
    model = net(lambda self, x: (lambda y: y + self.b(self.a(y).relu()))(self.stem(x)), **parts)
    graph = fxprune.analyze(fxprune.trace(model, image()))
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "l2"), flops=0.5, without=graph.blocks[0].name)
    [block] = graph.blocks
    assert list(plan.removed) == [block.name]
    assert plan.flops == graph.flops.total - block.flops
    with pytest.raises(FxpruneError, match=r"without \(='bb'\) is no block of the model"):
        fxprune.make_plan(graph, fxprune.scores(graph, "l2"), flops=0.5, without=["bb"])

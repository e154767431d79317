"""Depth and width in one plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariant import image, net, randomise
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, UnreachableBudgetError
from fxprune.channels import Block
from fxprune.channels.polynomial import build_polynomial, term, with_blocks
from fxprune.compensation.compensate import Compensation, Fit
from fxprune.data import Batch
from fxprune.depth import best_depth, blocks_in_order
from fxprune.gates import Gates
from fxprune.planning.budgets import Request, budgets_of
from fxprune.planning.make import plan_for, removable_blocks
from fxprune.provenance import pruning_notes
from fxprune.reporting.text import facts
from fxprune.verification import TOLERANCE


def forward(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    for each in self.blocks:
        x = x + each(x)
    return self.head(x.mean((2, 3)))


def branch(scale: float) -> nn.Module:
    made = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    with torch.no_grad():
        for parameter in made[3].parameters():
            parameter.mul_(scale)
    return made


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.ModuleList([branch(3.0), branch(0.01), branch(1.0)])
    return net(forward, stem=nn.Conv2d(3, 8, 3), blocks=blocks, head=nn.Linear(8, 4)).eval()


def samples(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_block_that_costs_least_goes_first(model: nn.Module) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    assert [block.name for block in graph.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps: list[int] = []
    order = list(blocks_in_order(graph, graph.blocks, budgets_of(graph, Request(0.05)), Batch((samples(),), {}),
                                 lambda what, done, total, more: steps.append(done)))  # fmt: skip
    assert [block.name for block in order] == ["blocks.1", "blocks.2", "blocks.0"]
    assert steps == [1, 2, 3]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_what_a_block_saves_is_time_where_that_was_measured(model: nn.Module) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    times = [1, 1, 10**9]
    pairs = zip(graph.blocks, times, strict=True)
    terms = [each for block, time in pairs for each in with_blocks([term(time)], [(block.channel,)])]
    timed = replace(graph, latency=build_polynomial(terms, graph.num_channels))
    order = blocks_in_order(timed, graph.blocks, budgets_of(timed, Request(0.1)), Batch((samples(),), {}),
                            lambda *step: None)  # fmt: skip
    assert next(order).name == "blocks.2"


def test_no_more_blocks_are_ordered_than_the_budget_asks_for(model: nn.Module) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    order = list(blocks_in_order(graph, graph.blocks, budgets_of(graph, Request(0.7)), Batch((samples(),), {}),
                                 lambda *step: None))  # fmt: skip
    assert [block.name for block in order] == ["blocks.1"]


def test_no_more_blocks_are_looked_for_than_are_tried(model: nn.Module) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    batch, scores, taken = Batch((samples(),), {}), fxprune.scores(graph, "l2"), list[Block]()
    run = Compensation.of(graph, batch, 0.25, 0, lambda *step: None, parts=())
    errors: dict[int, float] = {}

    def blocks() -> Iterator[Block]:
        for block in graph.blocks:
            taken.append(block)
            yield block

    def plan_without(gone: Sequence[Block]) -> fxprune.Plan:
        plan = plan_for(graph, scores, Request(0.9), gone)
        errors[len(gone)] = run.fit(fxprune.rewrite(graph, plan)).error
        return plan

    best = best_depth(graph, blocks(), plan_without, run)
    assert best.error == min(errors.values()) == errors[0]
    assert len(taken) == 2


def test_other_corrections_are_tried_on_the_best_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    scores, run = fxprune.scores(graph, "l2"), Compensation.of(graph, Batch((samples(),), {}), 0.25, 0, lambda *_: None)
    tried: list[Any] = []

    def fit(self: Compensation, pruned: Any) -> Fit:
        tried.append(self.parts)
        return Fit(pruned, pruned, (), {}, float(len(tried)))

    monkeypatch.setattr(Compensation, "fit", fit)
    best = best_depth(graph, graph.blocks, lambda gone: plan_for(graph, scores, Request(0.9), gone), run)
    assert tried == [run.parts[:1]] * 3 + [run.parts[1:]]
    assert not fxprune.plan_of(best.pruned).removed


@pytest.mark.parametrize("compensate", [False, True])
def test_a_block_that_does_nothing_is_left_out_rather_than_channels(model: nn.Module, compensate: bool) -> None:
    pruned = fxprune.prune(model, 0.6, data=[samples()], depth=True, compensate=compensate, progress=False)
    plan = fxprune.plan_of(pruned)
    assert "blocks.1" in plan.removed
    assert plan.flops <= 0.6 * plan.flops_before
    assert plan.flops == fxprune.count_flops(pruned, samples(1))
    assert fxprune.verify(model, pruned) <= TOLERANCE
    assert not any(name.startswith("blocks.1.") for name in pruned.state_dict())


def test_blocks_go_by_their_learned_gates(model: nn.Module) -> None:
    options: dict[str, Any] = {"data": [samples()], "method": "dagger", "progress": False}
    plan = fxprune.plan_of(fxprune.prune(model, 0.6, **options))
    assert tuple(plan.removed) == ("blocks.1",)
    assert plan.flops <= 0.6 * plan.flops_before
    assert not fxprune.plan_of(fxprune.prune(model, 0.6, depth=False, **options)).removed
    assert "blocks.1" not in fxprune.plan_of(fxprune.prune(model, 0.6, ignore="blocks.1", **options)).removed


def test_held_out_samples_say_how_many_blocks_go_in_the_order_of_their_gates(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    scores = fxprune.scores(graph, "l2")
    scores[[block.channel for block in graph.blocks]] = [-1.0, -2.0, 0.5]
    gates = Gates(scores, graph.module, 0.5, ())
    monkeypatch.setattr("fxprune.api.learn_gates", lambda *_, **__: gates)
    tried: list[list[str]] = []

    def best(graph: Any, blocks: Any, plan_without: Any, run: Compensation) -> Fit:
        tried.append([block.name for block in blocks])
        return best_depth(graph, (), plan_without, run)

    monkeypatch.setattr("fxprune.api.best_depth", best)
    fxprune.prune(model, 0.6, data=[samples()], method="dagger", progress=False)
    assert tried == [["blocks.1", "blocks.0", "blocks.2"]]


def test_a_budget_is_met_that_needs_more_blocks_than_the_gates_have_closed(model: nn.Module) -> None:
    """Gates of layers that are ignored are learned all the same."""
    options: dict[str, Any] = {"data": [samples()], "method": "dagger", "ignore": ["stem", "head"], "progress": False}
    plan = fxprune.plan_of(fxprune.prune(model, 0.07, **options))
    assert plan.flops <= 0.07 * plan.flops_before


def test_width_alone_and_depth_alone(model: nn.Module) -> None:
    wide = fxprune.plan_of(fxprune.prune(model, 0.6, data=[samples()], depth=False, progress=False))
    assert not wide.removed
    deep = fxprune.plan_of(fxprune.prune(model, 0.7, data=[samples()], width=False, progress=False))
    assert not deep.kept
    assert list(deep.removed) == ["blocks.1"]


def test_what_is_ignored_is_no_block_that_may_go(model: nn.Module) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    left = removable_blocks(graph, Request(ignore=("blocks.1",), depth=True))
    assert [block.name for block in left] == ["blocks.0", "blocks.2"]
    assert removable_blocks(graph, Request()) == ()


def test_a_budget_that_depth_alone_reaches_says_so(model: nn.Module) -> None:
    with pytest.raises(UnreachableBudgetError, match="or give depth=True, which can reach it"):
        fxprune.prune(model, 0.1, data=[samples()], ignore="stem", depth=False, progress=False)


def test_a_budget_that_width_alone_reaches_says_so(model: nn.Module) -> None:
    with pytest.raises(UnreachableBudgetError, match=r"all 3 blocks left out.*or give width=True, which can reach it"):
        fxprune.prune(model, 0.05, data=[samples()], depth=True, width=False, progress=False)


def test_nothing_to_prune_is_refused(model: nn.Module) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    given: dict[str, Any] = {"data": [samples()], "depth": True, "width": False, "progress": False}
    with pytest.raises(FxpruneError, match=r"width=False leaves nothing to prune.*no block that can be left out"):
        fxprune.prune(plain, 0.5, **given)
    with pytest.raises(FxpruneError, match="all of its blocks are ignored"):
        fxprune.prune(model, 0.5, ignore="blocks.*", **given)
    with pytest.raises(FxpruneError, match="depth=False and width=False leave nothing to prune"):
        fxprune.prune(model, 0.5, data=[samples()], depth=False, width=False, progress=False)
    with pytest.raises(FxpruneError, match=r"depth \(=2\) must be True, False, or None"):
        fxprune.prune(model, 0.5, data=[samples()], depth=2, progress=False)  # type: ignore[arg-type]


def test_depth_without_samples_is_refused() -> None:
    plain = net(lambda self, x: (lambda y: y + self.a(y))(self.stem(x)), a=nn.Conv2d(8, 8, 1), stem=nn.Conv2d(3, 8, 1))
    with pytest.raises(FxpruneError, match=r"leaving blocks out needs data.*or depth=False$"):
        fxprune.prune(plain, 0.9, example_inputs=image(), depth=True, progress=False)


def test_the_default_is_depth_where_there_are_samples(model: nn.Module) -> None:
    given = fxprune.prune(model, 0.6, data=[samples()], progress=False)
    made = fxprune.prune(model, 0.6, example_inputs=torch.zeros(1, 3, 32, 32), progress=False)
    none = fxprune.prune(model, 0.6, example_inputs=image(), compensate=False, progress=False)
    assert [bool(fxprune.plan_of(small).removed) for small in (given, made, none)] == [True, True, False]


@pytest.fixture
def shallow(model: nn.Module) -> torch.fx.GraphModule:
    return fxprune.prune(model, 0.6, data=[samples()], depth=True, compensate=False, progress=False)


def test_a_file_brings_a_model_without_blocks_back(model: nn.Module, shallow: nn.Module, tmp_path: Path) -> None:
    fxprune.save(shallow, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", original=model)
    assert torch.equal(again(samples()), shallow(samples()))
    assert fxprune.plan_of(again) == fxprune.plan_of(shallow)


def test_it_is_pruned_again_and_verified_against_the_first_original(
    model: nn.Module, shallow: nn.Module, tmp_path: Path
) -> None:
    twice = fxprune.prune(shallow, 0.6, data=[samples()], depth=True, compensate=False, progress=False)
    plan = fxprune.plan_of(twice)
    assert set(plan.removed) >= set(fxprune.plan_of(shallow).removed)
    assert fxprune.verify(model, twice) <= TOLERANCE
    assert fxprune.verify(shallow, twice) <= TOLERANCE
    fxprune.save(twice, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", original=model)
    assert torch.equal(again(samples()), twice(samples()))


def test_an_optimizer_forgets_the_parameters_of_blocks(model: nn.Module, shallow: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model(samples()).sum().backward()
    optimizer.step()
    small = fxprune.prune_optimizer(model, shallow, optimizer)
    assert len(small.param_groups[0]["params"]) == len(list(shallow.parameters()))
    assert {id(p) for p in small.state} == {id(p) for p in shallow.parameters()}


def test_the_own_class_does_without_its_blocks(model: nn.Module, shallow: nn.Module) -> None:
    own = fxprune.restore_class(model, shallow)
    torch.testing.assert_close(own(samples()), shallow(samples()))
    assert type(own) is type(model)
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in shallow.parameters())


def test_a_residual_module_passes_its_input_on() -> None:
    torchvision = pytest.importorskip("torchvision")
    original = torchvision.models.resnet18(weights=None).eval()
    data = [torch.randn(8, 3, 64, 64)]
    small = fxprune.prune(original, 0.8, data=data, depth=True, width=False, compensate=False, progress=False)
    own = fxprune.restore_class(original, small)
    assert any(isinstance(own.get_submodule(name), nn.Identity) for name in fxprune.plan_of(small).removed)
    torch.testing.assert_close(own(data[0]), small(data[0]))


def test_a_residual_module_that_changes_what_is_left_keeps_its_class() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.b(self.a(x)))

    original = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(), nn.Conv2d(8, 2, 1)).eval()
    small = fxprune.prune(original, 0.9, data=[samples()], depth=True, width=False, compensate=False, progress=False)
    own = fxprune.restore_class(original, small)
    assert list(fxprune.plan_of(small).removed) == ["1"]
    assert isinstance(own[1], Residual)
    assert not own[1].b.weight.any()
    torch.testing.assert_close(own(samples(3) - 5), small(samples(3) - 5))


def test_the_report_tells_which_blocks_are_gone(model: nn.Module, shallow: nn.Module) -> None:
    made = fxprune.report(shallow, original=model, repeats=2)
    assert "blocks.1" in made.blocks
    assert f"{len(made.blocks)} blocks: " in str(made)
    counts = [sum(p.numel() for p in each.parameters()) for each in (model, shallow)]
    assert [made.parameters.before, made.parameters.after] == counts
    gone = [layer for layer in made.layers if layer.name.startswith("blocks.1.")]
    assert gone
    assert all(layer.flops.after == layer.parameters.after == 0 for layer in gone)
    assert sum(layer.flops.after for layer in made.layers) == made.flops.after
    assert 'class="gone"' in made.to_html()
    assert "blocks.1" in fxprune.report(shallow, measure=False).blocks


def test_the_time_of_a_block_goes_with_it(model: nn.Module) -> None:
    graph = fxprune.time_channels(fxprune.analyze(fxprune.trace(model, image(size=16))), repeats=5)
    assert graph.latency is not None
    alive = np.ones(graph.num_channels, dtype=bool)
    whole = graph.latency(alive)
    shares = []
    for block in graph.blocks:
        alive[block.channel] = False
        shares.append((whole - graph.latency(alive)) / graph.latency.total)
        whole = graph.latency(alive)
    assert all(0.02 < share < 0.9 for share in shares)


def test_it_exports(shallow: nn.Module) -> None:
    program = torch.export.export(shallow, (samples(2),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(program.module()(samples(5)), shallow(samples(5)))


def test_one_sample_is_enough_to_prefer_a_block_that_does_nothing(model: nn.Module) -> None:
    small = fxprune.prune(model, 0.7, data=[samples(1)], depth=True, compensate=False, progress=False)
    assert list(fxprune.plan_of(small).removed) == ["blocks.1"]


def test_a_block_without_which_outputs_are_no_numbers_stays(model: nn.Module) -> None:
    def divided(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head((y / (y + self.b(y) - y)).mean((2, 3)))

    broken = net(divided, stem=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3, padding=1), head=nn.Linear(8, 4)).eval()
    graph = fxprune.analyze(fxprune.trace(broken, image()))
    assert len(graph.blocks) == 1
    budgets = budgets_of(graph, Request(0.1))
    order = list(blocks_in_order(graph, graph.blocks, budgets, Batch((samples(),), {}), lambda *step: None))
    assert order == []


def test_depth_asks_for_nothing_where_there_is_no_block() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    small = fxprune.prune(plain, 0.5, example_inputs=image(), depth=True, progress=False)
    assert not fxprune.plan_of(small).removed


class DenseLayer(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, 4, 3, padding=1)

    def forward(self, earlier: list[Tensor]) -> Tensor:
        return self.conv(self.norm(torch.cat(earlier, 1)).relu())


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layers = nn.ModuleList([DenseLayer(8 + 4 * k) for k in range(3)])
        for number, layer in enumerate(self.layers):
            layer.number = number
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.insert(layer.number, layer(parts))
        return self.head(self.norm(torch.cat(parts, 1)).relu().mean((2, 3)))


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Dense()).float()


@pytest.mark.parametrize("compensate", [False, True])
def test_dense_layers_are_left_out(dense: nn.Module, compensate: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"depth": True, "width": False, "compensate": compensate, "progress": False}
    small = fxprune.prune(dense, 0.7, data=[samples()], **options)
    plan = fxprune.plan_of(small)
    assert plan.removed
    assert plan.flops == fxprune.count_flops(small, samples(1))
    assert fxprune.verify(dense, small) <= TOLERANCE
    own = fxprune.restore_class(dense, small)
    torch.testing.assert_close(own(samples()), small(samples()))
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in small.parameters())
    fxprune.save(small, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", original=dense)
    assert torch.equal(again(samples()), small(samples()))
    made = fxprune.report(small, original=dense, repeats=2)
    assert made.blocks == tuple(plan.removed)
    assert sum(layer.flops.after for layer in made.layers) == made.flops.after
    assert any(group.channels.after == 0 for group in made.groups)
    twice = fxprune.prune(small, 0.8, data=[samples()], **options)
    assert set(fxprune.plan_of(twice).removed) > set(plan.removed)
    assert fxprune.verify(dense, twice) <= TOLERANCE


@pytest.mark.parametrize(("errors", "method"), [((2.0, 1.0), "dagger"), ((1.0, 2.0), "surgeon")])
def test_the_best_quality_keeps_what_held_out_samples_prefer(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, float], method: str
) -> None:
    graph = fxprune.analyze(fxprune.trace(model, image()))
    # Learned gates, if they are asked for, keep the channels that "l2" would remove.
    gates = Gates(-fxprune.scores(graph, "l2"), graph.module, 0.5, ())
    seen: list[int] = []

    def learn(graph: Any, data: Any, **options: Any) -> Gates:
        seen.append(sum(batch.size for batch in data) * options["epochs"])
        return gates

    ahead = iter(errors)

    def best(graph: Any, blocks: Any, plan_without: Any, run: Compensation) -> Fit:
        return replace(run.fit(fxprune.rewrite(graph, plan_without(()))), error=next(ahead))

    monkeypatch.setattr("fxprune.api.learn_gates", learn)
    monkeypatch.setattr("fxprune.api.best_depth", best)
    small = fxprune.prune(model, 0.5, data=[samples()], quality="best", progress=False)
    assert pruning_notes(small).method == method
    assert ("scores", method) in facts(fxprune.report(small, original=model, measure=False))
    # A quarter of the 16 samples is held out.
    assert seen == [12 * 20]
    assert fxprune.verify(model, small) <= TOLERANCE


def test_a_fast_run_looks_at_a_quarter_of_the_samples_and_leaves_no_block_out(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = Compensation.of

    def of(graph: Any, batch: Batch, *rest: Any, **options: Any) -> Compensation:
        sizes.append(batch.size)
        return whole(graph, batch, *rest, **options)

    monkeypatch.setattr("fxprune.api.Compensation.of", of)
    fast: dict[str, Any] = {"data": [samples(64)], "samples": 64, "quality": "fast", "progress": False}
    assert not fxprune.plan_of(fxprune.prune(model, 0.6, **fast)).removed
    assert fxprune.plan_of(fxprune.prune(model, 0.6, depth=True, **fast)).removed
    assert sizes == [16, 16]


def test_blocks_alone_are_not_said_to_be_chosen_by_scores_of_channels(model: nn.Module) -> None:
    small = fxprune.prune(model, 0.8, data=[samples()], width=False, progress=False)
    assert fxprune.plan_of(small).removed
    assert pruning_notes(small).method == ""

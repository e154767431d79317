"""A budget of memory is kept as counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from invariant import image, net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneWarning, UnreachableBudgetError
from fxprune.memory import plan_for_memory
from fxprune.planning.budgets import Request
from fxprune.planning.make import plan_for
from fxprune.reporting.numbers import percent
from fxprune.running.peak import peak_activations


def forward(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x).relu()
    for each in self.blocks:
        x = x + each(x)
    return self.head(x.mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(16, 48, 1), nn.ReLU(), nn.Conv2d(48, 16, 3, padding=1)) for _ in range(2)]
    return net(forward, stem=nn.Conv2d(3, 16, 3), blocks=nn.ModuleList(blocks), head=nn.Linear(16, 4)).eval()


def peak(model: nn.Module, inputs: Tensor) -> int:
    return peak_activations(model, (inputs,), {})


@pytest.mark.parametrize("options", [{}, {"flops": 0.5}, {"params": 0.6}, {"depth": True}, {"round_to": 4}])
def test_a_fraction_of_the_memory_is_kept(model: nn.Module, options: dict[str, Any]) -> None:
    data = [image(size=16, batch=8)]
    small = fxprune.prune(model, memory=0.6, data=data, compensate=False, method="l2", progress=False, **options)
    share = peak(small, image(size=16)) / peak(model, image(size=16))
    assert share <= 0.6
    assert share > 0.5 or fxprune.plan_of(small).removed
    assert fxprune.verify(model, small) <= 1e-9


def test_channels_that_cost_no_memory_stay(model: nn.Module) -> None:
    model.get_submodule("blocks.1.0").out_channels = 16
    blocks = model.get_submodule("blocks")
    blocks[1] = nn.Sequential(nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1))
    small = fxprune.prune(model, memory=0.6, example_inputs=image(size=16), compensate=False, method="l1")
    assert fxprune.plan_of(small).flops_target == fxprune.plan_of(small).flops_before
    assert len(small.get_parameter("blocks.0.0.weight")) < 48
    assert len(small.get_parameter("blocks.1.0.weight")) == 12


def test_a_number_of_bytes_is_for_one_sample(model: nn.Module) -> None:
    limit = 0.7 * peak(model, image(size=16, batch=1))
    for batch in (1, 4):
        inputs = image(size=16, batch=batch)
        small = fxprune.prune(model, memory=limit, example_inputs=inputs, compensate=False, method="l2")
        assert 0.8 * limit < peak(small, image(size=16, batch=1)) <= limit


def test_what_the_result_allocates_beyond_the_prediction_is_counted() -> None:
    """A LayerNorm whose channels go gets zeros in their place."""
    parts = {"stem": nn.Linear(6, 64), "norm": nn.LayerNorm(64), "head": nn.Linear(64, 2)}
    model = net(lambda self, x: self.head(self.norm(self.stem(x))), **parts).eval()
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(3, 6)))
    scores, asked = fxprune.scores(graph, "l2"), list[float]()

    def make(request: Request) -> fxprune.Plan:
        asked.append(request.memory or 0)
        return plan_for(graph, scores, request)

    plan = fxprune.make_plan(graph, scores, memory=0.9)
    assert peak(fxprune.rewrite(graph, plan), torch.randn(3, 6)) > 0.9 * graph.memory.total
    with pytest.raises(
        UnreachableBudgetError, match=r"bytes of activations at a time cannot be reached: the lowest that"
    ):
        plan_for_memory(graph, Request(memory=0.9), make)
    assert asked == sorted(asked, reverse=True)
    assert len(asked) > 1


def test_budgets_out_of_reach_and_without_effect_say_so(model: nn.Module) -> None:
    options: dict[str, Any] = {"example_inputs": image(size=16), "compensate": False, "method": "l2"}
    message = r"a budget of [\d,]+ bytes of activations at a time \(1\.0%\) cannot be reached.*Raise memory"
    with pytest.raises(UnreachableBudgetError, match=message):
        fxprune.prune(model, memory=0.01, **options)
    with pytest.warns(FxpruneWarning, match=re.escape("memory (=1000000000.0) is above what the model has")) as caught:
        fxprune.prune(model, memory=1e9, **options)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_fraction_is_of_what_is_counted() -> None:
    """Products of attention copy their factors."""

    def attention(self: Any, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    model = net(attention, qkv=nn.Linear(16, 48), head=nn.Linear(16, 2)).eval()
    inputs = torch.randn(2, 12, 16)
    graph = fxprune.analyze(fxprune.trace(model, inputs))
    counted = peak(graph.module, inputs)
    assert counted > graph.memory.total
    small = fxprune.prune(model, memory=0.8, example_inputs=inputs, compensate=False, method="l2")
    assert 0.6 * counted < peak(small, inputs) <= 0.8 * counted


@pytest.mark.parametrize("memory", [0.6, 30000])
def test_the_budget_is_in_the_plan_its_file_and_the_report(model: nn.Module, memory: float, tmp_path: Path) -> None:
    inputs = image(size=16, batch=1)
    whole = peak(model, inputs)
    share = memory if memory < 1 else memory / whole
    small = fxprune.prune(model, memory=memory, example_inputs=inputs, compensate=False, method="l2")
    assert fxprune.plan_of(small).memory_target == pytest.approx(share)
    fxprune.save(small, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", original=model)
    assert fxprune.plan_of(again).memory_target == pytest.approx(share)
    made = fxprune.report(again, original=model, repeats=2)
    assert made.memory_target == pytest.approx(share)
    assert re.search(rf"activations +.* → .* \(\d.*%\), budget {percent(share)}", str(made))
    assert "budget" not in str(made).partition("FLOPs  ")[2].partition("\n")[0]
    assert f"budget {percent(share)}" in made.to_html()
    assert "not counted" in fxprune.report(again, measure=False).to_html()

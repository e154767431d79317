"""FLOPs of parts that stay whole since their code follows the values of the input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace_knowing
from fxprune.verification import TOLERANCE


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, scores: Tensor, scale: float = 1.0) -> Tensor:
        out, chosen = torch.zeros_like(x), torch.nn.functional.one_hot(scores.argmax(-1), 3) * (scores > 0)
        for k in chosen.sum(0).nonzero().flatten():
            (rows,) = torch.where(chosen[:, k] > 0)
            out = out.index_add(0, rows, self.experts[int(k)](x[rows]) * scale)
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 64), nn.Linear(64, 8), nn.Linear(8, 3)
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        scores = self.c(y).softmax(-1)
        return self.experts(self.experts(y, scores), scores, scale=2.0)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:A part stays whole")
def test_they_are_those_of_the_example(tmp_path: Path) -> None:
    model, x = Net().double(), torch.randn(5, 6).double()
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    plan = fxprune.plan_of(pruned)
    whole = 2 * 5 * 8 * 8
    assert fxprune.count_flops(model, x) == plan.flops_before == whole + 5 * (6 * 64 + 64 * 8 + 8 * 3)
    assert fxprune.count_flops(pruned, x) == plan.flops <= plan.flops_before / 2
    assert not any("not counted" in note for note in fxprune.analyze(fxprune.trace(model, x)).remarks)
    assert fxprune.verify(model, pruned) <= TOLERANCE
    fxprune.save(pruned, tmp_path / "net.fxprune")
    assert fxprune.plan_of(fxprune.load(tmp_path / "net.fxprune", original=model)).flops == plan.flops


@pytest.mark.filterwarnings("ignore:A part stays whole")
def test_a_model_without_values_has_those_that_an_earlier_trace_has_seen() -> None:
    model, x = Net(), torch.randn(5, 6)
    traced = fxprune.trace(model, x)
    known = trace_notes(traced).values_read
    again = trace_knowing(model.to("meta"), x.to("meta"), known)
    assert fxprune.analyze(again).flops.total == fxprune.analyze(traced).flops.total

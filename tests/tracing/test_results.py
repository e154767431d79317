"""What calls give back: structures of tensors, and pieces of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


@dataclass
class Answer:
    mean: Tensor
    parts: tuple[Tensor, ...]


class Structured(nn.Module):
    def forward(self, x: Tensor, *, others: dict[str, Tensor], scale: float = 2.0, flag: bool = False) -> Any:
        total = x + others["a"] * scale
        if flag:
            total = -total
        return {"total": total, "answer": Answer(total.mean(), total.unbind(0))}


def test_keyword_inputs_and_structured_outputs() -> None:
    inputs = {"x": torch.randn(2, 3), "others": {"a": torch.randn(2, 3)}}
    traced = trace(Structured(), inputs)
    new = {"x": torch.randn(2, 3), "others": {"a": torch.randn(2, 3)}}
    expected, found = Structured()(**new), traced(**new)
    assert torch.equal(found["total"], expected["total"])
    assert isinstance(found["answer"], Answer)
    assert torch.equal(found["answer"].parts[1], expected["answer"].parts[1])
    assert trace_notes(traced).example_inputs == ((), inputs)

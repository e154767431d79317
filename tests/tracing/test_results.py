"""What calls give back: structures of tensors, and pieces of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import FxpruneError
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


class Chunked(nn.Module):
    def forward(self, x: Tensor) -> Any:
        first, second = x.chunk(2, 1)
        return [piece * first.sum() + second.sum() for piece in x.chunk(4)]


def test_chunks_are_as_many_as_in_the_trace() -> None:
    model, x = Chunked(), torch.randn(3, 4)
    traced = trace(model, x)
    assert torch.equal(traced(x[:, :3])[2], model(x[:, :3])[2])
    for other in (torch.randn(8, 4), torch.randn(2, 4), torch.randn(3, 1)):
        with pytest.raises(FxpruneError, match=r"//.* is \d here, and was \d when the model was traced"):
            traced(other)

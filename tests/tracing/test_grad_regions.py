"""Regions without gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.tracing.tracer import trace


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 3 * ctx.saved_tensors[0]


class CustomGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            detached = self.scale * 2
        return Square.apply(x * self.scale) * detached  # type: ignore[no-any-return]


def test_custom_gradients_and_no_grad_regions_are_those_of_the_model() -> None:
    model, x = CustomGradient(), torch.randn(2, 3)
    traced = trace(model, x)
    for candidate in (model, traced, copy.deepcopy(traced)):
        candidate.zero_grad()
        candidate(x).sum().backward()
        gradient = candidate.scale.grad
        assert isinstance(gradient, Tensor)
        assert torch.equal(gradient, model.scale.grad)  # type: ignore[arg-type]
    with torch.no_grad():
        traced(x)
        assert not torch.is_grad_enabled()

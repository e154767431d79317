"""Compiled functions, methods, layers and models are traced, counted and compared as what they were made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.compile(dynamic=True)
def modulated(x: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale).sigmoid()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.head = nn.Linear(12, 3)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(x))).mean((2, 3)))


class CallsAFunction(Net):
    def between(self, x: Tensor) -> Tensor:
        return modulated(x, self.scale)


class CallsAMethod(Net):
    @torch.compile
    def between(self, x: Tensor) -> Tensor:
        return x * self.scale


class KeepsAFunction(Net):
    def __init__(self) -> None:
        super().__init__()
        self.between = torch.compile(lambda x: x * self.scale)  # type: ignore[method-assign]


class HasACompiledLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = torch.compile(self.second)  # type: ignore[assignment]


class WasCompiledInPlace(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second.compile()
        self.compile()


@pytest.mark.parametrize("make", [CallsAFunction, CallsAMethod, KeepsAFunction, HasACompiledLayer, WasCompiledInPlace])
def test_compiled_code_is_pruned_as_what_it_was_made_of(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("torch._dynamo.convert_frame._compile", refuse)
    model = make().eval()
    small = fxprune.prune(model, 0.5, example_inputs=X, compensate=False, method="l2")
    assert fxprune.verify(model, small, X) < 1e-9
    assert fxprune.count_flops(small, X) <= 0.5 * fxprune.count_flops(model, X)
    with pytest.raises(Exception, match="compiled"):
        model(X)

"""Compiled functions, methods, layers and models are traced, counted and compared as what they were made of."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.running.eager import running_eagerly, runs_modules, source_of_scripted

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


class RunsAModule(torch.autograd.Function):
    """As in reversible networks: the module is an argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        assert ctx.needs_input_grad == (True, False)
        return module(x)


def test_a_function_that_is_given_modules_runs_as_its_forward_and_a_checkpoint_as_its_function() -> None:
    linear, x = nn.Linear(3, 3), torch.randn(2, 3)
    with running_eagerly():
        # Neither can be differentiated in that way otherwise: the first has no backward, the second no input to keep.
        y = RunsAModule.apply(x, linear)
        z = checkpoint(linear, x, use_reentrant=True)
    assert torch.equal(y, linear(x))
    assert torch.equal(z, y)
    assert "AddmmBackward" in type(y.grad_fn).__name__
    assert "AddmmBackward" in type(z.grad_fn).__name__
    with pytest.raises(Exception, match="backward"):
        RunsAModule.apply(x.clone().requires_grad_(), linear).sum().backward()


def test_modules_are_found_in_what_functions_and_objects_hold() -> None:
    linear = nn.Linear(3, 3)

    def closure() -> Any:
        return linear

    held = type("Held", (), {})()
    held.parts = [linear]
    for given in (linear, closure, linear.forward, held, {"a": [linear]}):
        assert runs_modules((X, given))
    assert not runs_modules((X, 1, "x", nn.Linear, len))


def test_a_scripted_function_has_a_source_and_another_has_none() -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(double)
    assert source_of_scripted(scripted) is double
    assert source_of_scripted(double) is None

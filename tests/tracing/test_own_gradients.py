"""Autograd Functions whose `backward` is autograd's own are in the graph as what they compute; no others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import check_invariant, image, net, parameter
from torch import Tensor, nn

from fxprune.tracing.own_gradients import has_gradients_of_autograd
from fxprune.tracing.tracer import trace


class Norm(torch.autograd.Function):
    """A layer norm over channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        y = (x - mean) / (var + eps).sqrt()
        ctx.save_for_backward(y, var + eps, weight)
        return weight.view(1, -1, 1, 1) * y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        y, var, weight = ctx.saved_tensors
        g = grads[0] * weight.view(1, -1, 1, 1)
        inner = g - y * (g * y).mean(1, keepdim=True) - g.mean(1, keepdim=True)
        return inner / var.sqrt(), (grads[0] * y).sum((0, 2, 3)), None


class HalfGradient(Norm):
    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        by_x, by_weight, _ = Norm.backward(ctx, *grads)
        return by_x / 2, by_weight, None


class Clamped(torch.autograd.Function):
    """Its gradient goes on where values are cut, which small ones are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.clamp(-9, 9) * weight.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        return grads[0] * weight.view(1, -1, 1, 1), (grads[0] * x.clamp(-9, 9)).sum((0, 2, 3)), None


class InSinglePrecision(Norm):
    """As Norm, but in autocast."""

    forward = torch.amp.custom_fwd(Norm.forward, device_type="cpu", cast_inputs=torch.float32)


class Product(torch.autograd.Function):
    """fvcore does not count it where it is in a Function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * (weight @ weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        return grads[0] * (weight @ weight), 2 * weight * (grads[0] * x).sum(), None


@pytest.mark.parametrize(
    ("function", "same"),
    [(Norm, True), (HalfGradient, False), (Clamped, False), (InSinglePrecision, False), (Product, False)],
)
def test_a_function_has_the_gradients_of_autograd_or_others(function: Any, same: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(function.apply(self.a(x), self.weight, 0.01))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), weight=parameter(8))
    traced, x = trace(model, image()), image()
    assert any(node.name.startswith(f"_{function.__name__.lower()}") for node in traced.graph.nodes) != same
    for each in (model, traced):
        each(x).square().sum().backward()
    for (_, ours), (_, theirs) in zip(model.named_parameters(), traced.named_parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_norm_that_is_a_function_is_pruned_like_one_that_is_written_out() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(Norm.apply(self.a(x), self.weight, 0.01))  # type: ignore[no-any-return]

    check_invariant(net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), weight=parameter(8)), image(), 8)


def test_what_cannot_be_tried_is_left_alone() -> None:
    x, weight = torch.empty(2, 8, 5, 5, device="meta"), torch.empty(8, device="meta")
    assert has_gradients_of_autograd(Norm, (x, weight, 0.01))
    assert not has_gradients_of_autograd(Norm, (x, weight.long(), 0.01))
    assert not has_gradients_of_autograd(Norm, (x, 0.01))
    assert not has_gradients_of_autograd(Norm, (x[:1].expand(100_000, 8, 5, 5), weight, 0.01))
    assert not has_gradients_of_autograd(Norm, (x[0], weight, 0.01))

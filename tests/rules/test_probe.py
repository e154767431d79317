"""Ops without a rule, and calls that a rule does not take: run to see, or frozen with the reason; never a crash."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import check_invariant, image, net, parameter
from torch import Tensor, nn

from fxprune.rules import elementwise


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.flip(1).cumsum(1).flip(1)


class MyConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def images(function: Any, **parts: Any) -> nn.Module:
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Conv2d(3, 8, 1), out=nn.Conv2d(8, 2, 1), **parts
    )


NETS = {
    "an own function by channel passes": (lambda: images(lambda self, x: Swish.apply(x)), 8),
    "an own function that mixes is frozen": (lambda: images(lambda self, x: Mix.apply(x)), 0),
    "an activation without a rule passes": (
        lambda: images(lambda self, x: torch.special.erfinv(x.tanh()) + torch.sinc(x)),
        8,
    ),
    "a module without a rule passes": (lambda: images(lambda self, x: self.act(x), act=nn.FeatureAlphaDropout()), None),
    "a convolution of one's own": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), MyConv(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        14,
    ),
    "a lazy distance": (lambda: images(lambda self, x: x + torch.cdist(x, x)), 8),
    "random numbers like the channels": (lambda: images(lambda self, x: x + 0 * torch.randn_like(x)), 8),
    "a transform over space": (lambda: images(lambda self, x: torch.fft.fft2(x).abs()), None),
    "a determinant is read as a number": (
        lambda: images(lambda self, x: x + torch.linalg.det(x[:, :6, :, 0])[:, None, None, None]),
        None,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_ops_without_a_rule_keep_the_invariant(name: str) -> None:
    make, channels = NETS[name]
    check_invariant(make(), image(), channels)


def test_a_call_that_a_rule_does_not_take_freezes_what_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow_minded(op: Any, *arguments: Any) -> Any:
        raise TypeError("three arguments")

    monkeypatch.setattr(elementwise.elementwise, "propagate", narrow_minded)
    model = images(lambda self, x: torch.lerp(x, self.b, 0.5), b=parameter(1, 8, 1, 1))
    graph = check_invariant(model, image(), 0)
    assert any("the rule of lerp does not take this call (lerp: three arguments)" in f.reason for f in graph.frozen)

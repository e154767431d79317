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


class Scan(torch.autograd.Function):
    """A state space: u and steps are (batch, channels, length), a is (channels, states), b is (batch, states, length).

    The states of the end are a second result, their number of channels a third.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, steps: Tensor, a: Tensor, b: Tensor) -> Any:
        state, outputs = u.new_zeros(u.shape[0], u.shape[1], a.shape[1]), []
        for t in range(u.shape[2]):
            kept = (steps[:, :, t, None] * a).sigmoid()
            state = kept * state + (u[:, :, t, None] * b[:, None, :, t])
            outputs.append(state.sum(-1))
        return torch.stack(outputs, -1), state.transpose(1, 2), b.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError


def scanned(self: Any, x: Tensor) -> Tensor:
    u, b = self.u(x), self.b(x)
    y, state, mean = Scan.apply(u, self.steps(u), self.a, b)
    return self.out(y + state.mean(1, keepdim=True).transpose(1, 2)) * mean


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


def test_channels_in_different_dimensions_pass_to_all_results_of_an_own_function() -> None:
    parts = {"u": nn.Conv1d(3, 8, 1), "steps": nn.Conv1d(8, 8, 1), "b": nn.Conv1d(3, 5, 1), "out": nn.Conv1d(8, 2, 1)}
    graph = check_invariant(net(scanned, **parts, a=parameter(8, 5)), torch.randn(2, 3, 4), None, other_batch=False)
    assert [len(group) for group in graph.groups] == [8]
    assert {str(d) for d in graph.groups[0].dimensions} >= {"a[0]", "u.weight[0]", "steps.weight[0]", "out.weight[1]"}

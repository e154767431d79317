"""Ops without a rule are tried on small tensors: channels pass or are frozen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter
from layer_nets import images, invariant_test, vectors
from torch import Tensor, nn

import fxprune


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
    "an own function by channel passes": (lambda: images(lambda self, x: Swish.apply(x)), image(), 8),
    "an own function that mixes is frozen": (lambda: images(lambda self, x: Mix.apply(x)), image(), 0),
    "an activation without a rule passes": (
        lambda: images(lambda self, x: torch.special.erfinv(x.tanh()) + torch.sinc(x)),
        image(),
        8,
    ),
    "a module without a rule passes": (
        lambda: images(lambda self, x: self.act(x), act=nn.FeatureAlphaDropout()),
        image(),
        None,
    ),
    "a convolution of one's own": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), MyConv(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        image(),
        14,
    ),
    "a determinant is read as a number": (
        lambda: images(lambda self, x: x + torch.linalg.det(x[:, :6, :, 0])[:, None, None, None]),
        image(),
        None,
    ),
    "upper triangle of a matrix of channels": (
        lambda: vectors(lambda self, x: x.triu() + torch.tril(x)),
        torch.randn(3, 4),
        None,
    ),
    "running sums over space pass": (lambda: images(lambda self, x: x.cumsum(2)), image(), 8),
    "running sums over channels are frozen": (lambda: images(lambda self, x: x.cumsum(1)), image(), 0),
    "a pool of random regions": (lambda: images(lambda self, x: F.fractional_max_pool2d(x, 2, 3)), image(), None),
    "a tensor that is resized in place": (
        lambda: vectors(lambda self, x: x + x.clone().as_strided_((3, 8), (8, 1)).mean()),
        torch.randn(3, 4),
        None,
    ),
}


test_ops_without_a_rule_keep_the_invariant = invariant_test(NETS, one_batch=["a tensor that is resized in place"])


def test_channels_in_different_dimensions_pass_to_all_results_of_an_own_function() -> None:
    parts = {"u": nn.Conv1d(3, 8, 1), "steps": nn.Conv1d(8, 8, 1), "b": nn.Conv1d(3, 5, 1), "out": nn.Conv1d(8, 2, 1)}
    graph = check_invariant(net(scanned, **parts, a=parameter(8, 5)), torch.randn(2, 3, 4), None, other_batch=False)
    assert [len(group) for group in graph.groups] == [8]
    assert {str(d) for d in graph.groups[0].dimensions} >= {"a[0]", "u.weight[0]", "steps.weight[0]", "out.weight[1]"}


def test_a_module_that_counts_its_calls_in_a_buffer_is_probed_without_counting() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.square()

    model = nn.Sequential(nn.Linear(4, 8), Counting(), nn.Linear(8, 2))
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(3, 4), copy=False, leaves=[Counting]))
    assert len(graph.groups) == 1
    assert int(model[1].calls) == 0  # type: ignore[arg-type]

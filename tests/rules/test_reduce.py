"""Reductions and softmax."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from torch import Tensor, nn


def images(function: object, **parts: object) -> nn.Module:
    """A function of eight channels between two convolutions."""
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Conv2d(3, 8, 1), out=nn.Conv2d(8, 2, 1), **parts
    )  # type: ignore[operator]


def only(function: object) -> nn.Module:
    """A function of eight channels, and its result the output."""
    return net(lambda self, x: function(self.a(x)), a=nn.Conv2d(3, 8, 1))  # type: ignore[operator]


TWO = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1)}


def layer_norm(self: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return self.w[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.b[:, None, None]


def by_deviation(self: Any, x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.float().std(dim=1, keepdim=True, correction=0) + 1e-5)


def by_variance_and_mean(self: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def rms_norm(self: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)


def response_norm(self: Any, x: Tensor) -> Tensor:
    last = x.permute(0, 2, 3, 1)
    energy = last.norm(p=2, dim=(1, 2), keepdim=True)
    return (self.w * (last * (energy / (energy.mean(-1, keepdim=True) + 1e-6))) + last).permute(0, 3, 1, 2)


def spatial_attention(self: Any, x: Tensor) -> Tensor:
    seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * self.c(seen).sigmoid()


def softmax(self: Any, x: Tensor) -> Tensor:
    powers = (x - x.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


# What is in many models in place of a module; a sigmoid after it, so that zeros do not stay zeros.
WRITTEN_OUT = {
    f"written out: {function.__name__}": functools.partial(
        images,
        lambda self, x, function=function: function(self, x).sigmoid(),
        w=parameter(8),
        b=parameter(8),
        c=nn.Conv2d(2, 1, 3, padding=1),
    )
    for function in (
        *(layer_norm, by_deviation, by_variance_and_mean, rms_norm, response_norm, spatial_attention, softmax),
    )
}
NETS = {
    "mean over space": (
        lambda: net(lambda self, x: self.b(self.a(x).mean((2, 3))), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 2)),
        image(),
        8,
    ),
    "mean over channels divides by the original width": (lambda: only(lambda x: x.mean(1)), image(), 8),
    "mean over channels and space": (lambda: only(lambda x: x.mean(dim=(1, 2), keepdim=True)), image(), 8),
    "mean over everything but the batch": (lambda: only(lambda x: x.flatten(1).mean(-1)), image(), 8),
    "mean over everything": (lambda: only(lambda x: x.mean()), image(), 8),
    "mean over channels that are not zero": (lambda: only(lambda x: x.sigmoid().mean(1)), image(), 8),
    "mean over everything that is not zero": (lambda: images(lambda self, x: x * x.sigmoid().mean()), image(), 8),
    "mean over channels that a softmax made is frozen": (lambda: only(lambda x: x.softmax(2).mean(1)), image(), 0),
    "sum over channels": (lambda: only(lambda x: x.relu().sum(dim=1, keepdim=True)), image(), 8),
    "sum over channels that are not zero": (lambda: only(lambda x: x.exp().sum(1)), image(), 8),
    "sum over tokens": (
        lambda: net(lambda self, x: self.b(self.a(x).sum(1)), a=nn.Linear(4, 8), b=nn.Linear(8, 2)),
        tokens(),
        8,
    ),
    "the largest over channels": (lambda: only(lambda x: x.amax(1)), image(), 8),
    "where the largest over channels is, is frozen": (lambda: only(lambda x: x.max(1)[1]), image(), 0),
    "the largest over space": (lambda: images(lambda self, x: x * x.amax((2, 3), keepdim=True)), image(), 8),
    "the largest with its place": (
        lambda: images(lambda self, x: x.max(3, keepdim=True).values + x.min(dim=2, keepdim=True)[0]),
        image(),
        8,
    ),
    "the larger of two": (lambda: images(lambda self, x: torch.max(x, x * 0.5)), image(), 8),
    "variance over space": (lambda: images(lambda self, x: x / (x.var((2, 3), keepdim=True) + 1)), image(), 8),
    "standard deviation and mean": (
        lambda: images(lambda self, x: torch.std_mean(x, (2, 3), keepdim=True)[0] + x),
        image(),
        8,
    ),
    "variance over channels": (lambda: only(lambda x: x.var(1)), image(), 8),
    "variance over two dimensions of channels is frozen": (
        lambda: net(lambda self, x: (self.a(x)[:, :, None] * self.b(x)[:, None]).var((1, 2)), **TWO),
        image(),
        0,
    ),
    "what is written into on the way is frozen": (
        lambda: images(lambda self, x: x * ((y := x - (u := x.mean(1, keepdim=True))), u.mul_(2), y.exp())[2].mean()),
        image(),
        0,
    ),
    "what is written into after its mean was taken": (
        lambda: images(lambda self, x: (m := x.mean(1, keepdim=True), x.add_(1))[1] * m),
        image(),
        8,
    ),
    "what is written into after its variance was taken is frozen": (
        lambda: images(lambda self, x: (v := x.var(1, keepdim=True), x[:, :, 1:].add_(1), x)[2] * v),
        image(),
        0,
    ),
    **{name: (make, image(), 8) for name, make in WRITTEN_OUT.items()},
    "the most likely channel is frozen": (lambda: only(lambda x: x.argmax(1)), image(), 0),
    "numpy's names of arguments": (
        lambda: images(
            lambda self, x: torch.sum(x, axis=(2, 3), keepdims=True) + torch.stack([x, x], axis=2).max(axis=2).values
        ),
        image(),
        8,
    ),
    "numpy's names of arguments over channels": (
        lambda: images(lambda self, x: x * x.sigmoid().mean(axis=1, keepdims=True)),
        image(),
        8,
    ),
    "norm over channels": (
        lambda: only(lambda x: x.norm(dim=1) + torch.linalg.norm(x, dim=1) + x.norm(p=1, dim=1)),
        image(),
        None,
    ),
    "norm over space": (lambda: images(lambda self, x: x * x.norm(p=2, dim=(2, 3), keepdim=True)), image(), 8),
    "norm over everything": (lambda: only(lambda x: x.norm()), image(), 8),
    "weights of bounded norm": (
        lambda: images(lambda self, x: F.conv2d(x, self.w.renorm(2, 0, 0.5)), w=parameter(8, 8, 1, 1)),
        image(),
        16,
    ),
    "a bounded norm of what is not zero is frozen": (
        lambda: images(lambda self, x: torch.renorm(x.exp(), p=2, dim=0, maxnorm=1.0)),
        image(),
        0,
    ),
    "softmax over channels is frozen": (lambda: images(lambda self, x: x.softmax(1)), image(), 0),
    "softmax over space": (lambda: images(lambda self, x: F.softmax(x.flatten(2), -1).view_as(x)), image(), 8),
    "softmax modules": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax(dim=2), nn.LogSoftmax(dim=3), nn.Conv2d(8, 2, 1)),
        image(),
        8,
    ),
    "sorted over channels is frozen": (lambda: images(lambda self, x: x.sort(1).values), image(), 0),
    "the top of space": (lambda: only(lambda x: x.flatten(2).topk(3).values), image(), 0),
    "running sums over space have no rule and pass": (lambda: images(lambda self, x: x.cumsum(2)), image(), 8),
    "running sums over channels have no rule and freeze": (lambda: images(lambda self, x: x.cumsum(1)), image(), 0),
}


@pytest.mark.parametrize("name", NETS)
def test_reductions_keep_the_invariant(name: str) -> None:
    make, inputs, channels = NETS[name]
    check_invariant(make(), inputs, channels)


def test_what_zeros_stand_in_for_goes_only_if_needed() -> None:
    graph = check_invariant(images(lambda self, x: x / (x.var(1, keepdim=True) + 1)), image(), 8)
    assert graph.groups[0].last_resort == "reduced by var; zeros stand in for what is removed"


def test_what_stands_in_is_made_once_however_often_it_is_used() -> None:
    def grown(self: Any, x: Tensor) -> Tensor:
        y = x.cosh()
        for _ in range(40):
            y = (y + y.tanh()) * 0.5
        return x - y.mean(1, keepdim=True)

    check_invariant(images(grown), image(), 8, plans=1)

"""Reductions and softmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, tokens
from torch import nn


def images(function: object, **parts: object) -> nn.Module:
    """A function of eight channels between two convolutions."""
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Conv2d(3, 8, 1), out=nn.Conv2d(8, 2, 1), **parts
    )  # type: ignore[operator]


def only(function: object) -> nn.Module:
    """A function of eight channels, and its result the output."""
    return net(lambda self, x: function(self.a(x)), a=nn.Conv2d(3, 8, 1))  # type: ignore[operator]


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
    "mean over channels that are not zero is frozen": (lambda: only(lambda x: x.sigmoid().mean(1)), image(), 0),
    "sum over channels": (lambda: only(lambda x: x.relu().sum(dim=1, keepdim=True)), image(), 8),
    "sum over channels that are not zero is frozen": (lambda: only(lambda x: x.exp().sum(1)), image(), 0),
    "sum over tokens": (
        lambda: net(lambda self, x: self.b(self.a(x).sum(1)), a=nn.Linear(4, 8), b=nn.Linear(8, 2)),
        tokens(),
        8,
    ),
    "the largest over channels is frozen": (lambda: only(lambda x: x.amax(1)), image(), 0),
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
    "variance over channels is frozen": (lambda: only(lambda x: x.var(1)), image(), 0),
    "the most likely channel is frozen": (lambda: only(lambda x: x.argmax(1)), image(), 0),
    "norm over channels": (
        lambda: only(lambda x: x.norm(dim=1) + torch.linalg.norm(x, dim=1) + x.norm(p=1, dim=1)),
        image(),
        None,
    ),
    "norm over space": (lambda: images(lambda self, x: x * x.norm(p=2, dim=(2, 3), keepdim=True)), image(), 8),
    "norm over everything": (lambda: only(lambda x: x.norm()), image(), 8),
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

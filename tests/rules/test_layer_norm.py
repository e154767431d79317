"""LayerNorm, RMSNorm and GroupNorm."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import Tensor, nn


def around(norm: nn.Module, channels: int = 8) -> nn.Module:
    """The norm between two convolutions, a sigmoid after it, so that zeros do not stay zeros."""
    return nn.Sequential(nn.Conv2d(3, channels, 1), norm, nn.Sigmoid(), nn.Conv2d(channels, 2, 1))


def set_to_zero(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    y = x.clone()
    y[mask[..., 0]] = 0
    return y


NETS = {
    "layer norm with a weight that is not zero where its parameter is": (
        lambda: vectors(
            lambda self, x: F.layer_norm(x, (8,), 1 + self.w).sum(-1, keepdim=True).expand(-1, -1, 8), w=parameter(8)
        ),
        tokens(width=4),
        8,
    ),
    "layer norm": (lambda: vectors(lambda self, x: self.norm(x).sigmoid(), norm=nn.LayerNorm(8)), tokens(), 8),
    "layer norm without bias": (
        lambda: vectors(lambda self, x: self.norm(x).sigmoid(), norm=nn.LayerNorm(8, bias=False)),
        tokens(),
        8,
    ),
    "layer norm without parameters": (
        lambda: vectors(lambda self, x: self.norm(x).sigmoid(), norm=nn.LayerNorm(8, elementwise_affine=False)),
        tokens(),
        8,
    ),
    "functional layer norm": (
        lambda: vectors(lambda self, x: F.layer_norm(x, (8,), self.w, self.b, 1e-3), w=parameter(8), b=parameter(8)),
        tokens(),
        8,
    ),
    "functional layer norm by size": (lambda: vectors(lambda self, x: F.layer_norm(x, x.shape[-1:])), tokens(), 8),
    "layer norm of what is not zero": (
        lambda: vectors(lambda self, x: self.norm(x.sigmoid()), norm=nn.LayerNorm(8)),
        tokens(),
        8,
    ),
    "layer norm of what is dropped at random and not zero is frozen": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Dropout(), nn.LayerNorm(8), nn.Linear(8, 2)),
        tokens(),
        0,
    ),
    "layer norm over space and channels": (
        lambda: net(
            lambda self, x: self.out(self.norm(self.a(x)).flatten(1)),
            a=nn.Conv2d(3, 4, 1),
            norm=nn.LayerNorm((4, 6, 6)),
            out=nn.Linear(144, 2),
        ),
        image(),
        0,
    ),
    "layer norm of a last dimension that is not of channels": (
        lambda: net(
            lambda self, x: self.out(self.norm(self.a(x)).sigmoid()),
            a=nn.Conv1d(3, 8, 1),
            norm=nn.LayerNorm(5),
            out=nn.Conv1d(8, 2, 1),
        ),
        torch.randn(2, 3, 5),
        8,
    ),
    "a layer norm that is called twice": (
        lambda: vectors(lambda self, x: self.norm(self.mid(self.norm(x))), norm=nn.LayerNorm(8), mid=nn.Linear(8, 8)),
        tokens(),
        8,
    ),
    "layer norm of images, channels last": (
        lambda: images(lambda self, x: self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(8)),
        image(),
        8,
    ),
    "rms norm": (lambda: vectors(lambda self, x: self.norm(x).sigmoid(), norm=nn.RMSNorm(8)), tokens(), 8),
    "rms norm without parameters": (
        lambda: vectors(lambda self, x: self.norm(x), norm=nn.RMSNorm(8, elementwise_affine=False, eps=1e-3)),
        tokens(),
        8,
    ),
    "functional rms norm": (
        lambda: vectors(lambda self, x: F.rms_norm(x, (8,), self.w, 1e-4), w=parameter(8)),
        tokens(),
        8,
    ),
    "group norm by whole norm groups": (lambda: around(nn.GroupNorm(4, 8)), image(), 4),
    "group norm without parameters": (lambda: around(nn.GroupNorm(4, 8, affine=False)), image(), 4),
    "group norm of one norm group": (lambda: around(nn.GroupNorm(1, 8)), image(), 8),
    "group norm of one channel each": (lambda: around(nn.GroupNorm(8, 8)), image(), 8),
    "functional group norm": (
        lambda: images(lambda self, x: F.group_norm(x, 4, self.w, self.b, 1e-3), w=parameter(8), b=parameter(8)),
        image(),
        4,
    ),
    "functional group norm of one norm group": (
        lambda: images(lambda self, x: F.group_norm(x, 1, self.w, self.b, 1e-3), w=parameter(8), b=parameter(8)),
        image(),
        8,
    ),
    "a group norm that is called twice": (
        lambda: net(
            lambda self, x: self.out(self.n(self.b(self.n(self.a(x)).relu()))),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 8, 1),
            n=nn.GroupNorm(4, 8),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        4,
    ),
    **{
        f"layer norm of what is {name}": (
            lambda function=function: vectors(
                lambda self, x: self.n(function(self, x, x.sum(-1, keepdim=True) > 0)).sigmoid(),
                n=nn.LayerNorm(8),
                t=parameter(8),
            ),
            tokens(),
            8,
        )
        for name, function in {
            "masked": lambda self, x, mask: x.masked_fill(mask, 0.0),
            "masked by a number": lambda self, x, mask: x.masked_fill(mask, -1.0),
            "where a condition holds": lambda self, x, mask: torch.where(mask, x, 0.0),
            "replaced by a parameter": lambda self, x, mask: torch.where(mask, self.t, x),
            "set to zero by a mask": set_to_zero,
            "not zero": lambda self, x, mask: x.cosh() + self.t,
        }.items()
    },
    "layer norm of what is set to another number by a mask is frozen": (
        lambda: vectors(
            lambda self, x: self.n((y := x.clone(), operator.setitem(y, x[..., 0] > 0, 1.0), y)[2]), n=nn.LayerNorm(8)
        ),
        tokens(),
        0,
    ),
    "group norm of what is not zero": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1)),
        image(),
        8,
    ),
    "rms norm of what is not zero": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.RMSNorm(8), nn.Linear(8, 2)),
        tokens(),
        8,
    ),
    "layer norm of a pooled map": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), around(nn.LayerNorm([8, 1, 1]))),
        image(),
        8,
    ),
    "layer norm of a map of one column": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), around(nn.LayerNorm([8, 2, 1]))),
        image(),
        0,
    ),
    "functional rms norm of a pooled map": (
        lambda: images(
            lambda self, x: F.rms_norm(x.mean((2, 3), keepdim=True), (8, 1, 1), self.w), w=parameter(8, 1, 1)
        ),
        image(),
        8,
    ),
    "layer norm of a softmax is frozen": (
        lambda: vectors(lambda self, x: F.layer_norm(x.softmax(1), (8,))),
        tokens(),
        0,
    ),
}


test_norms_over_channels_keep_the_invariant = invariant_test(NETS)


def test_a_norm_over_channels_makes_them_a_last_resort_and_says_why() -> None:
    graph = check_invariant(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), tokens(), 8)
    assert graph.groups[0].last_resort == "normalised over; zeros stand in for what is removed"
    assert "only if needed: normalised over" in str(graph)

"""Normalisation: by channel, over channels with zeros standing in, by norm groups, of weights."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from torch import Tensor, nn


class StandardisedConv(nn.Conv2d):
    """Weight standardisation as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-5
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def around(norm: nn.Module, channels: int = 8) -> nn.Module:
    """The norm between two convolutions, a sigmoid after it, so that zeros do not stay zeros."""
    return nn.Sequential(nn.Conv2d(3, channels, 1), norm, nn.Sigmoid(), nn.Conv2d(channels, 2, 1))


def after(function: object, **parts: object) -> nn.Module:
    """A function of the module and of eight channels between two linear layers."""
    return net(lambda self, x: self.out(function(self, self.a(x))), a=nn.Linear(4, 8), out=nn.Linear(8, 2), **parts)  # type: ignore[operator]


def spectral(norm: Any) -> nn.Module:
    """Convolutions of all kinds, and a linear layer that sees a channel at several places."""
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 3)),
        nn.Sigmoid(),
        norm(nn.Conv2d(8, 6, 3, groups=2)),
        nn.ReLU(),
        norm(nn.ConvTranspose2d(6, 4, 2)),
        nn.Flatten(),
        norm(nn.Linear(36, 5)),
    )


def set_to_zero(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    y = x.clone()
    y[mask[..., 0]] = 0
    return y


NETS = {
    "layer norm with a weight that is not zero where its parameter is": (
        lambda: after(
            lambda self, x: F.layer_norm(x, (8,), 1 + self.w).sum(-1, keepdim=True).expand(-1, -1, 8), w=parameter(8)
        ),
        tokens(width=4),
        8,
    ),
    "batch norm with a bias that is not zero where its parameter is": (
        lambda: after(
            lambda self, x: (
                F.batch_norm(x.mT, self.m, self.v, self.w, 1 + self.b).mT.sum(-1, keepdim=True).expand(-1, -1, 8)
            ),
            w=parameter(8),
            b=parameter(8),
            m=torch.zeros(8),
            v=torch.ones(8),
        ),
        tokens(width=4),
        8,
    ),
    "batch norm": (lambda: around(nn.BatchNorm2d(8)), image(), 8),
    "batch norm without parameters": (lambda: around(nn.BatchNorm2d(8, affine=False)), image(), 8),
    "batch norm without statistics": (lambda: around(nn.BatchNorm2d(8, track_running_stats=False)), image(), 8),
    "batch norm of vectors": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)),
        torch.randn(3, 4),
        8,
    ),
    "batch norm of volumes": (
        lambda: nn.Sequential(nn.Conv3d(1, 8, 1), nn.BatchNorm3d(8), nn.Conv3d(8, 2, 1)),
        torch.randn(2, 1, 2, 2, 2),
        8,
    ),
    "instance norm": (lambda: around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), image(), 8),
    "instance norm without parameters": (lambda: around(nn.InstanceNorm2d(8)), image(), 8),
    "instance norm in one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.InstanceNorm1d(8), nn.Conv1d(8, 2, 1)),
        torch.randn(2, 3, 5),
        8,
    ),
    "functional batch norm": (
        lambda: after(
            lambda self, x: F.batch_norm(x, self.mean, self.var, self.w, self.b).sigmoid(),
            mean=torch.zeros(8),
            var=torch.ones(8),
            w=parameter(8),
            b=parameter(8),
        ),
        torch.randn(3, 4),
        8,
    ),
    "functional instance norm": (
        lambda: net(
            lambda self, x: self.out(F.instance_norm(self.a(x), weight=self.w, bias=self.b).sigmoid()),
            a=nn.Conv2d(3, 8, 1),
            w=parameter(8),
            b=parameter(8),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "layer norm": (lambda: after(lambda self, x: self.norm(x).sigmoid(), norm=nn.LayerNorm(8)), tokens(), 8),
    "layer norm without bias": (
        lambda: after(lambda self, x: self.norm(x).sigmoid(), norm=nn.LayerNorm(8, bias=False)),
        tokens(),
        8,
    ),
    "layer norm without parameters": (
        lambda: after(lambda self, x: self.norm(x).sigmoid(), norm=nn.LayerNorm(8, elementwise_affine=False)),
        tokens(),
        8,
    ),
    "functional layer norm": (
        lambda: after(lambda self, x: F.layer_norm(x, (8,), self.w, self.b, 1e-3), w=parameter(8), b=parameter(8)),
        tokens(),
        8,
    ),
    "functional layer norm by size": (lambda: after(lambda self, x: F.layer_norm(x, x.shape[-1:])), tokens(), 8),
    "layer norm of what is not zero": (
        lambda: after(lambda self, x: self.norm(x.sigmoid()), norm=nn.LayerNorm(8)),
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
        lambda: after(lambda self, x: self.norm(self.mid(self.norm(x))), norm=nn.LayerNorm(8), mid=nn.Linear(8, 8)),
        tokens(),
        8,
    ),
    "layer norm of images, channels last": (
        lambda: net(
            lambda self, x: self.out(self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
            a=nn.Conv2d(3, 8, 1),
            norm=nn.LayerNorm(8),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "rms norm": (lambda: after(lambda self, x: self.norm(x).sigmoid(), norm=nn.RMSNorm(8)), tokens(), 8),
    "rms norm without parameters": (
        lambda: after(lambda self, x: self.norm(x), norm=nn.RMSNorm(8, elementwise_affine=False, eps=1e-3)),
        tokens(),
        8,
    ),
    "functional rms norm": (
        lambda: after(lambda self, x: F.rms_norm(x, (8,), self.w, 1e-4), w=parameter(8)),
        tokens(),
        8,
    ),
    "rms norm spelt out": (
        lambda: after(lambda self, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.w, w=parameter(8)),
        tokens(),
        8,
    ),
    "layer norm spelt out": (
        lambda: after(lambda self, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()),
        tokens(),
        8,
    ),
    "group norm by whole norm groups": (lambda: around(nn.GroupNorm(4, 8)), image(), 4),
    "group norm without parameters": (lambda: around(nn.GroupNorm(4, 8, affine=False)), image(), 4),
    "group norm of one norm group": (lambda: around(nn.GroupNorm(1, 8)), image(), 8),
    "group norm of one channel each": (lambda: around(nn.GroupNorm(8, 8)), image(), 8),
    "functional group norm": (
        lambda: net(
            lambda self, x: self.out(F.group_norm(self.a(x), 4, self.w, self.b, 1e-3)),
            a=nn.Conv2d(3, 8, 1),
            w=parameter(8),
            b=parameter(8),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        4,
    ),
    "functional group norm of one norm group": (
        lambda: net(
            lambda self, x: self.out(F.group_norm(self.a(x), 1, self.w, self.b, 1e-3)),
            a=nn.Conv2d(3, 8, 1),
            w=parameter(8),
            b=parameter(8),
            out=nn.Conv2d(8, 2, 1),
        ),
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
    "weight standardisation": (
        lambda: nn.Sequential(
            StandardisedConv(3, 8, 3), nn.ReLU(), StandardisedConv(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        image(),
        14,
    ),
    "weight norm": (
        lambda: nn.Sequential(
            *(nn.utils.parametrizations.weight_norm(nn.Linear(a, b)) for a, b in ((4, 8), (8, 6))),
            nn.Tanh(),
            nn.Linear(6, 2),
        ),
        torch.randn(3, 4),
        14,
    ),
    "spectral norm": (lambda: spectral(nn.utils.parametrizations.spectral_norm), image(), 11),
    "spectral norm by a hook": (lambda: spectral(nn.utils.spectral_norm), image(), 11),
    "spectral norm of one channel": (
        lambda: nn.Sequential(
            *(nn.utils.parametrizations.spectral_norm(nn.Linear(a, b)) for a, b in ((4, 1), (1, 8), (8, 2)))
        ),
        torch.randn(3, 4),
        8,
    ),
    "local response norm over channels is frozen": (lambda: around(nn.LocalResponseNorm(3)), image(), 0),
    "vectors of unit length": (lambda: after(lambda self, x: F.normalize(x, dim=-1)), tokens(), 8),
    "vectors of unit length of what is not zero": (
        lambda: after(lambda self, x: F.normalize(x.sigmoid(), dim=-1)),
        tokens(),
        0,
    ),
    "divided by their length": (
        lambda: after(lambda self, x: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-6)),
        tokens(),
        8,
    ),
    **{
        f"layer norm of what is {name}": (
            lambda function=function: after(
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
        lambda: after(
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
        lambda: net(
            lambda self, x: self.out(F.rms_norm(self.a(x).mean((2, 3), keepdim=True), (8, 1, 1), self.w)),
            a=nn.Conv2d(3, 8, 1),
            w=parameter(8, 1, 1),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "layer norm of a softmax is frozen": (
        lambda: after(lambda self, x: F.layer_norm(x.softmax(1), (8,))),
        tokens(),
        0,
    ),
    **{
        name: (
            lambda distance=distance: net(
                lambda self, x: distance(self.a(x), self.b(x)), a=nn.Linear(4, 8), b=nn.Linear(4, 8)
            ),
            tokens(),
            8,
        )
        for name, distance in {
            "all distances": lambda a, b: torch.cdist(a, b),
            "all distances of another power": lambda a, b: torch.cdist(a, b[:1], 1.0),
            "distances in pairs": lambda a, b: F.pairwise_distance(a, b, eps=0.01),
            "distances in pairs by a module": lambda a, b: nn.PairwiseDistance(keepdim=False)(a, b),
            "similarities by a module": lambda a, b: nn.CosineSimilarity(dim=-1)(a, b),
            "mean squared difference": F.mse_loss,
            "sum of differences": lambda a, b: F.l1_loss(a, b, reduction="sum"),
            "Huber loss by a module": lambda a, b: nn.HuberLoss()(a, b.detach()),
        }.items()
    },
    "distances of what is not zero are frozen": (
        lambda: net(lambda self, x: torch.cdist(self.a(x).sigmoid(), self.b(x)), a=nn.Linear(4, 8), b=nn.Linear(4, 8)),
        tokens(),
        0,
    ),
    "cosine similarity": (
        lambda: net(
            lambda self, x: F.cosine_similarity(self.a(x)[:, :, None], self.b(x)[:, None], dim=-1),
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 8),
        ),
        tokens(),
        8,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_norms_keep_the_invariant(name: str) -> None:
    make, inputs, channels = NETS[name]
    # Statistics of the batch are others for another batch: that is so in the original too.
    check_invariant(make(), inputs, channels)


def test_a_norm_over_channels_makes_them_a_last_resort_and_says_why() -> None:
    graph = check_invariant(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), tokens(), 8)
    assert graph.groups[0].last_resort == "normalised over; zeros stand in for what is removed"
    assert "only if needed: normalised over" in str(graph)

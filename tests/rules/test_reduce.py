"""Reductions and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import nn


def only(function: object) -> nn.Module:
    """A function of eight channels, and its result the output."""
    return net(lambda self, x: function(self.a(x)), a=nn.Conv2d(3, 8, 1))  # type: ignore[operator]


def standardised(weight: torch.Tensor) -> torch.Tensor:
    mean = weight.mean(dim=(1, 2, 3), keepdim=True)
    return (weight - mean) / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)


TWO = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1)}


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
    "variance over two dimensions of channels freezes one": (
        lambda: net(lambda self, x: (self.a(x)[:, :, None] * self.b(x)[:, None]).var((1, 2)), **TWO),
        image(),
        8,
    ),
    "weights standardised over their inputs and kernel": (
        lambda: net(
            lambda self, x: self.c(self.norm(F.conv2d(self.a(x), standardised(self.b), padding=1)).relu()),
            a=nn.Conv2d(3, 8, 1),
            b=parameter(12, 8, 3, 3),
            norm=nn.GroupNorm(3, 12),
            c=nn.Conv2d(12, 2, 1),
        ),
        image(),
        8 + 3,
    ),
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
    "rms norm spelt out": (
        lambda: vectors(
            lambda self, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.w, w=parameter(8)
        ),
        tokens(),
        8,
    ),
    "layer norm spelt out": (
        lambda: vectors(lambda self, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()),
        tokens(),
        8,
    ),
    "vectors of unit length": (lambda: vectors(lambda self, x: F.normalize(x, dim=-1)), tokens(), 8),
    "vectors of unit length of what is not zero": (
        lambda: vectors(lambda self, x: F.normalize(x.sigmoid(), dim=-1)),
        tokens(),
        0,
    ),
    "divided by their length": (
        lambda: vectors(lambda self, x: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-6)),
        tokens(),
        8,
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


test_reductions_keep_the_invariant = invariant_test(NETS)


def test_what_zeros_stand_in_for_goes_only_if_needed() -> None:
    graph = check_invariant(images(lambda self, x: x / (x.var(1, keepdim=True) + 1)), image(), 8)
    assert graph.groups[0].last_resort == "reduced by var; zeros stand in for what is removed"

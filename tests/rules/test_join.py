"""Ops that join tensors."""

from __future__ import annotations

import torch
from invariant import image, net
from layer_nets import images, invariant_test
from torch import nn

NETS = {
    "the same tensor twice": (lambda: images(lambda self, x: torch.cat([x, x], 1), out=16), image(), 8),
    "dense concatenation": (
        lambda: images(lambda self, x: torch.cat([x, self.b(x).relu()], 1), out=13, b=nn.Conv2d(8, 5, 1)),
        image(),
        13,
    ),
    "concatenation with the input": (
        lambda: net(
            lambda self, x: self.b(torch.cat([x, self.a(x)], dim=1)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(11, 2, 1)
        ),
        image(),
        8,
    ),
    "concatenation along space": (lambda: images(lambda self, x: torch.cat([x, x.flip(2)], dim=2)), image(), 8),
    "stacked": (lambda: images(lambda self, x: torch.stack([x, x.sigmoid()], 1).sum(1)), image(), 8),
    "stacked behind the channels": (
        lambda: images(lambda self, x: torch.stack((x, x.relu()), -1).flatten(3)[..., :6]),
        image(),
        8,
    ),
    "joined by functions that are named after the dimension": (
        lambda: images(
            lambda self, x: torch.dstack(
                [torch.hstack([x[:, :3], x[:, 3:].relu()]), torch.vstack([x, x])[: x.shape[0]]]
            )
        ),
        image(),
        8,
    ),
    "vectors joined by a function that is named after the dimension are frozen": (
        lambda: net(
            lambda self, x: self.b(torch.vstack([self.a(x[0]), self.a(x[1])])), a=nn.Linear(4, 8), b=nn.Linear(8, 2)
        ),
        torch.randn(2, 4),
        0,
    ),
}


test_joining_keeps_the_invariant = invariant_test(
    NETS, one_batch=["vectors joined by a function that is named after the dimension are frozen"]
)

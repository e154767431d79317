"""Ops that cut dimensions into parts."""

from __future__ import annotations

import operator

import torch
from invariant import image, net, tokens
from layer_nets import images, invariant_test
from torch import nn

NETS = {
    "chunks": (lambda: images(lambda self, x: operator.mul(*x.chunk(2, 1)), out=4), image(), 4),
    "chunks of different use": (
        lambda: images(
            lambda self, x: torch.cat([(c := x.chunk(2, 1))[0], self.b(c[1])], 1), out=4 + 3, b=nn.Conv2d(4, 3, 1)
        ),
        image(),
        11,
    ),
    "uneven chunks": (lambda: images(lambda self, x: torch.cat(x.chunk(3, 1)[:2], 1), out=6), image(), None),
    "split by one size": (lambda: images(lambda self, x: sum(x.split(2, dim=1)[1:]), out=2), image(), None),
    "split by sizes": (lambda: images(lambda self, x: torch.cat(torch.split(x, [5, 3], 1)[::-1], 1)), image(), 8),
    "split by a size read from the tensor": (
        lambda: images(lambda self, x: operator.add(*torch.split(x, x.shape[1] // 2, 1)), out=4),
        image(),
        4,
    ),
    "split into single channels": (lambda: images(lambda self, x: torch.cat(x.split(1, 1), 1)), image(), None),
    "narrowed": (
        lambda: images(lambda self, x: torch.cat([x.narrow(1, 0, 3).relu(), x.narrow(1, -5, 5)], 1)),
        image(),
        8,
    ),
    "one channel taken by number": (
        lambda: images(lambda self, x: x * x[:, 0:1].sigmoid() + x.select(1, 3).unsqueeze(1)),
        image(),
        6,
    ),
    "unbound over branches": (
        lambda: net(
            lambda self, x: self.out(operator.mul(*self.a(x).unflatten(-1, (2, 8)).unbind(-2))),
            a=nn.Linear(4, 16),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "narrowed at a number that is a tensor": (
        lambda: images(lambda self, x: x.narrow(1, self.n, 4), out=4, n=torch.tensor(2)),
        image(),
        8,
    ),
}


test_cutting_keeps_the_invariant = invariant_test(NETS)

"""Indexing, reading and writing."""

from __future__ import annotations

import operator

import torch
from invariant import image, net, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import nn

ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])

NETS = {
    "sliced": (lambda: images(lambda self, x: torch.cat([x[:, :3].relu(), x[:, 3:]], 1)), image(), 8),
    "sliced from the end": (
        lambda: images(lambda self, x: torch.cat([x[:, :-3], x[:, -3:, ...].relu()], 1)),
        image(),
        8,
    ),
    "sliced by its own size": (
        lambda: images(lambda self, x: x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :], out=4),
        image(),
        4,
    ),
    "sliced in space": (lambda: images(lambda self, x: x[..., ::2, 1:]), image(), 8),
    "sliced with a step": (lambda: images(lambda self, x: torch.cat([x[:, ::2], x[:, 1::2]], 1)), image(), 4),
    "sliced with a step that does not divide the width": (
        lambda: images(lambda self, x: torch.cat([x[:, ::3], x[:, 2::3]], 1), out=5),
        image(),
        3,
    ),
    "sliced with a step from further on is frozen": (lambda: images(lambda self, x: x[:, 3::2], out=3), image(), 0),
    "written into by a mask": (
        lambda: vectors(
            lambda self, x: (y := x.sigmoid(), operator.setitem(y, x.sum(-1) > 0, self.b(x).mean((0, 1))), y)[2],
            b=nn.Linear(8, 8),
        ),
        tokens(),
        8,
    ),
    "picked by a mask": (lambda: images(lambda self, x: x[:, self.m], out=4, m=ORDER > 3), image(), 8),
    "picked by a mask and by what it leaves": (
        lambda: images(lambda self, x: torch.cat([x[:, self.m].relu(), x[:, ~self.m]], 1), m=ORDER > 3),
        image(),
        8,
    ),
    "picked by a list of truths": (
        lambda: images(lambda self, x: x[:, [True, False, True, True] * 2], out=6),
        image(),
        8,
    ),
    "one token taken by number": (
        lambda: net(lambda self, x: self.out(self.a(x)[:, 0]), a=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        tokens(),
        8,
    ),
    "tokens taken by a list and by a tensor": (
        lambda: net(
            lambda self, x: self.out(self.a(x)[:, [0, 2]] + self.a(x)[:, self.i] + self.a(x).index_select(1, self.i)),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
            i=torch.tensor([1, 3]),
        ),
        tokens(),
        8,
    ),
    "written into in space": (
        lambda: images(lambda self, x: (operator.setitem(x, (slice(None), slice(None), 0), 0.5), x)[1]),
        image(),
        8,
    ),
    "written into in channels": (
        lambda: images(lambda self, x: (operator.setitem(x, (slice(None), 0), 0.5), x)[1]),
        image(),
        7,
    ),
    "written into a new tensor": (
        lambda: images(
            lambda self, x: (
                y := x.new_zeros(x.shape),
                operator.setitem(y, (slice(None), slice(None), slice(1, 3)), x[:, :, :2]),
                y,
            )[2]
        ),
        image(),
        8,
    ),
    "sliced up to a number that is a tensor": (
        lambda: vectors(lambda self, x: x[:, : self.n] + x[:, self.n :], out=4, n=torch.tensor(4)),
        torch.randn(3, 4),
        4,
    ),
    "rows taken by a list": (
        lambda: net(lambda self, x: self.out(self.a(x)[[1, 0]]), a=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        torch.randn(3, 4),
        8,
    ),
    "channels of a parameter taken by a list": (
        lambda: net(
            lambda self, x: self.out(self.a(x) * self.p[[3, 0, 1, 2, 7, 5, 6, 4]]),
            p=parameter(8),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        torch.randn(3, 4),
        8,
    ),
    "rows written into by a list are frozen": (
        lambda: vectors(lambda self, x: (y := x.clone(), operator.setitem(y, [0, 2], 1.0), y)[2]),
        torch.randn(3, 4),
        0,
    ),
}


test_indexing_keeps_the_invariant = invariant_test(NETS, one_batch=["rows taken by a list"])

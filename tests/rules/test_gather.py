"""Reads and writes by tensors of indices, and sorting."""

from __future__ import annotations

from typing import Any

import torch
from invariant import image, net, tokens
from layer_nets import images, invariant_test
from torch import Tensor, nn


def gathered(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y = y.index_add(1, self.i, y[:, :2]).index_copy(1, self.i, y[:, 2:4].relu()).index_fill(1, self.i[:1], 0.5)
    return self.out(y.scatter(1, y[:, :2].argsort(1), y[:, 3:].tanh()) + y.scatter_add(1, y.argsort(1), y))


def ordered(self: Any, x: Tensor) -> Tensor:
    values, places = self.a(x).sort(dim=1)
    return self.out(values.msort() + places + values.cummax(1).values)


NETS = {
    "gathered tokens": (
        lambda: net(
            lambda self, x: self.out(torch.gather(y := self.a(x), 1, y.argsort(1))),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "sorted over channels is frozen": (lambda: images(lambda self, x: x.sort(1).values), image(), 0),
    "the top of space": (
        lambda: net(lambda self, x: self.a(x).flatten(2).topk(3).values, a=nn.Conv2d(3, 8, 1)),
        image(),
        0,
    ),
}


test_gathering_and_sorting_keep_the_invariant = invariant_test(NETS)

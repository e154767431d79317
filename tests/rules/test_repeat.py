"""Ops that repeat entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from invariant import image, net, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import nn

X = torch.randn(3, 4)

NETS = {
    **{
        f"a fixed kernel {name}": (
            lambda function=function, outputs=outputs: images(
                lambda self, x: F.conv2d(x, function(self.k, x.shape[1]), padding=1, groups=x.shape[1]),
                out=8 * outputs,
                k=torch.randn(outputs, 1, 3, 3),
            ),
            image(),
            8,
        )
        for name, outputs, function in (
            ("repeated for each channel", 1, lambda k, n: k.repeat(n, 1, 1, 1)),
            ("joined for each channel", 1, lambda k, n: torch.cat([k] * n)),
            ("tiled for each channel", 1, lambda k, n: k.tile((n, 1, 1, 1))),
            ("expanded for each channel", 1, lambda k, n: k.expand(n, -1, -1, -1)),
            ("interleaved for each channel", 1, lambda k, n: k.repeat_interleave(n, 0)),
            ("interleaved, as many as there are", 1, lambda k, n: torch.repeat_interleave(k, repeats=8, dim=0)),
            ("of two outputs, repeated for each channel", 2, lambda k, n: k.repeat(n, 1, 1, 1)),
            ("of two outputs, joined for each channel", 2, lambda k, n: torch.cat([k for _ in range(n)], 0)),
        )
    },
    "few fixed numbers, each as often as there are channels": (
        lambda: images(
            lambda self, x: x.repeat(1, 2, 1, 1) * self.k.repeat_interleave(8, 0)[:, None, None],
            out=16,
            k=torch.randn(2),
        ),
        image(),
        8,
    ),
    "repeated channels": (lambda: images(lambda self, x: x.repeat(1, 2, 1, 1), out=16), image(), 8),
    "channels repeated one by one": (
        lambda: images(lambda self, x: x.repeat_interleave(2, dim=1), out=16),
        image(),
        8,
    ),
    "expanded over space": (
        lambda: images(lambda self, x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6)),
        image(),
        8,
    ),
    "expanded over channels": (
        lambda: images(lambda self, x: x * x.mean((2, 3), keepdim=True).sum(1, keepdim=True).expand(-1, 8, -1, -1)),
        image(),
        8,
    ),
    "expanded like another": (
        lambda: images(lambda self, x: x * self.gate(x).sigmoid().expand_as(x), gate=nn.Conv2d(8, 1, 1)),
        image(),
        8,
    ),
    "expanded by its shape": (
        lambda: images(lambda self, x: x * self.gate(x).sigmoid().expand(x.shape), gate=nn.Conv2d(8, 1, 1)),
        image(),
        8,
    ),
    "a token for each image": (
        lambda: net(
            lambda self, x: self.out(torch.cat([self.cls.expand(x.shape[0], -1, -1), self.a(x)], 1)),
            cls=nn.Parameter(torch.zeros(1, 1, 8)),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "broadcast against each other": (
        lambda: vectors(
            lambda self, x: torch.cat(torch.broadcast_tensors(x[:, None], self.table, self.more(x)[None]), -1),
            out=24,
            table=parameter(1),
            more=nn.Linear(8, 8),
        ),
        X,
        8,
    ),
}


test_repeating_keeps_the_invariant = invariant_test(NETS)

"""New tensors that become as wide as the channels that they meet."""

from __future__ import annotations

from typing import Any

import torch
from invariant import net, tokens
from layer_nets import invariant_test
from torch import Tensor, nn


def filled_in_parts(self: Any, x: Tensor, made: Any) -> Tensor:
    y = self.a(x)
    parts = made(y)
    parts[..., :4] = y[..., :4].relu()
    parts[..., 4:] = y[..., 4:].tanh()
    return self.out(parts)


NETS = {
    **{
        f"{name} is filled in parts": (
            lambda made=made: net(
                lambda self, x: filled_in_parts(self, x, made), a=nn.Linear(4, 8), out=nn.Linear(8, 2)
            ),
            tokens(),
            8,
        )
        for name, made in {
            "what empty makes": lambda y: torch.empty(y.shape[0], y.shape[1], 8, dtype=y.dtype),
            "what new_empty makes": lambda y: y.new_empty(y.shape),
            "what new makes": lambda y: y.new(*y.shape),
        }.items()
    },
    "ones and a full tensor as wide as what they meet": (
        lambda: net(
            lambda self, x: self.out(
                (y := self.a(x)) * torch.ones(8) + y.new_full((8,), 0.5) - torch.full((1, 8), 0.1) + y.new_ones(8)
            ),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "zeros that are written into": (
        lambda: net(
            lambda self, x: self.out(torch.zeros(x.shape[0], x.shape[1], 8, dtype=x.dtype).add_(self.a(x))),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "zeros joined to the channels": (
        lambda: net(
            lambda self, x: self.out(torch.cat([y := self.a(x), y.new_zeros(size=(len(x), 5, 3))], -1)),
            a=nn.Linear(4, 8),
            out=nn.Linear(11, 2),
        ),
        tokens(),
        8 + 3,
    ),
}


test_new_tensors_keep_the_invariant = invariant_test(NETS)

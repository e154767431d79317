"""Ops that reorder dimensions."""

from __future__ import annotations

import torch
from invariant import image, net
from layer_nets import images, invariant_test, vectors
from torch import nn

X = torch.randn(3, 4)

NETS = {
    "permuted, transposed, moved": (
        lambda: net(
            lambda self, x: self.out(self.a(x).permute(0, 2, 3, 1).transpose(1, 2).movedim(-1, 1).swapaxes(2, 3)),
            a=nn.Conv2d(3, 8, 1),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "turned matrices": (lambda: vectors(lambda self, x: x.t().T.mT.mT), X, 8),
    "squeezed and unsqueezed": (
        lambda: vectors(lambda self, x: x[:, None].unsqueeze(-1).squeeze(-1).squeeze(1)),
        X,
        8,
    ),
    "rolled over space": (lambda: images(lambda self, x: torch.roll(x, (1, 2), (2, 3)).flip(3)), image(), 8),
    "rolled over channels is frozen": (lambda: images(lambda self, x: torch.roll(x, 1, 1)), image(), 0),
}


test_reordering_keeps_the_invariant = invariant_test(NETS)

"""Indices whose values are known before the model runs."""

from __future__ import annotations

import torch
from invariant import image
from layer_nets import images, invariant_test, vectors

X = torch.randn(3, 4)

ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])

NETS = {
    "picked where a mask is true": (
        lambda: images(lambda self, x: x.index_select(1, self.m.nonzero().squeeze(1)), out=4, m=ORDER > 3),
        image(),
        8,
    ),
    "channels in another order, by a buffer": (lambda: vectors(lambda self, x: x[:, self.i], i=ORDER), X, 8),
    "channels in another order, by a tensor that is no buffer": (
        lambda: images(lambda self, x, order=ORDER: x[:, order]),
        image(),
        8,
    ),
    "channels in another order, by index_select": (
        lambda: images(
            lambda self, x: torch.index_select(x, 1, self.i) + x.index_select(dim=-3, index=self.i.argsort()), i=ORDER
        ),
        image(),
        6,
    ),
    "channels taken by a list, some of them twice": (
        lambda: images(lambda self, x: torch.cat([x[:, [2, 0, -1, 2], 1:].sigmoid(), x[..., [5, 3], 1:, :]], 1), out=6),
        image(),
        8,
    ),
    "channels taken by a list of one": (lambda: images(lambda self, x: x + x[:, [3]]), image(), 7),
    "channels are shuffled by an index that is computed from sizes": (
        lambda: images(lambda self, x: x[:, torch.arange(x.shape[1], device=x.device).view(2, 4).t().flatten()] * x),
        image(),
        4,
    ),
    "channels by an index that is written into are frozen": (
        lambda: images(lambda self, x: (i := torch.arange(8), i.__setitem__(0, 3), x[:, i])[-1]),
        image(),
        0,
    ),
    "channels by an index of several dimensions are frozen": (
        lambda: images(lambda self, x: x[:, self.i.view(2, 4)].flatten(1, 2), i=ORDER),
        image(),
        0,
    ),
}


test_known_indices_keep_the_invariant = invariant_test(NETS)

"""Sizes that are read, and new tensors."""

from __future__ import annotations

import torch
from layer_nets import invariant_test, vectors

X = torch.randn(3, 4)

NETS = {
    "the size of channels as a number": (lambda: vectors(lambda self, x: x / x.shape[-1] ** 0.5 + x.size(1)), X, 8),
    "the number of elements": (lambda: vectors(lambda self, x: x / x.numel() + self.out.weight.nelement()), X, 8),
    "attributes that are views, and such that are numbers": (
        lambda: vectors(lambda self, x: x.T.T.data + x.real * x.ndim + x.mT.mT.dim() + x.element_size()),
        X,
        8,
    ),
    "a new tensor of channels is read": (
        lambda: vectors(lambda self, x: x + torch.as_tensor(x[0, :1].sum()) + x.new_tensor([1.0])),
        X,
        None,
    ),
}


test_reading_sizes_keeps_the_invariant = invariant_test(NETS)

"""Norms of weights: weight norm and spectral norm."""

from __future__ import annotations

import torch
from invariant import image
from layer_nets import SPECTRAL, invariant_test
from torch import nn
from torch.nn.utils import parametrizations

NETS = {
    **{name: (make, image(), 11) for name, make in SPECTRAL.items()},
    "weight norm": (
        lambda: nn.Sequential(
            *(parametrizations.weight_norm(nn.Linear(a, b)) for a, b in ((4, 8), (8, 6))), nn.Tanh(), nn.Linear(6, 2)
        ),
        torch.randn(3, 4),
        14,
    ),
    "one length for all weights": (
        lambda: nn.Sequential(
            *(parametrizations.weight_norm(nn.Linear(a, b), dim=None) for a, b in ((4, 8), (8, 6))),
            *(nn.Tanh(), nn.Linear(6, 2)),
        ),
        torch.randn(3, 4),
        14,
    ),
    "spectral norm of one channel": (
        lambda: nn.Sequential(*(parametrizations.spectral_norm(nn.Linear(a, b)) for a, b in ((4, 1), (1, 8), (8, 2)))),
        torch.randn(3, 4),
        8,
    ),
}


test_norms_of_weights_keep_the_invariant = invariant_test(NETS)

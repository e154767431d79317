"""Local response norm."""

from __future__ import annotations

import torch.nn.functional as F
from invariant import image, tokens
from layer_nets import images, invariant_test, vectors
from torch import nn

NETS = {
    "a norm over neighbours": (
        lambda: images(lambda self, x: self.norm(x), norm=nn.LocalResponseNorm(3, 0.5, 0.7, 2.0)), image(), 8
    ),
    "the function, after a pool": (
        lambda: images(lambda self, x: F.local_response_norm(F.max_pool2d(x.relu(), 2), size=4, alpha=0.5)), image(), 8
    ),
    "of sequences": (lambda: vectors(lambda self, x: F.local_response_norm(x.mT, 2, 0.5).mT), tokens(), 8),
    "channels that are not zero when they are removed stay": (
        lambda: images(lambda self, x: F.local_response_norm(x.sigmoid(), 3)), image(), 0
    ),
}  # fmt: skip

test_local_response_norms_keep_the_invariant = invariant_test(NETS)

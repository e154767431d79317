"""What one analysis knows of tensors that share memory."""

from __future__ import annotations

import torch.nn.functional as F
from invariant import image
from layer_nets import images, invariant_test
from torch import nn

NETS = {
    "written into through a chunk": (
        lambda: images(lambda self, x: (x.chunk(2, 1)[0].add_(1), x.sum(1, keepdim=True).expand(-1, 8, -1, -1))[1]),
        image(),
        8,
    ),
    "written into after a view was taken": (
        lambda: images(lambda self, x: (v := x[:, :4], x.add_(1), v.sum(1, keepdim=True).expand(-1, 8, -1, -1))[2]),
        image(),
        12,
    ),
    "written into through a dropout that does nothing": (
        lambda: images(
            lambda self, x: (F.dropout(x, 0.5, False).add_(1), x.sum(1, keepdim=True).expand(-1, 8, -1, -1))[1]
        ),
        image(),
        8,
    ),
    "written into through a flattened view": (
        lambda: images(
            lambda self, x: (self.flat(x).add_(1), x.sum(1, keepdim=True).expand(-1, 8, -1, -1))[1], flat=nn.Flatten(2)
        ),
        image(),
        8,
    ),
}


test_writing_into_shared_memory_keeps_the_invariant = invariant_test(NETS)

"""BatchNorm and InstanceNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from invariant import image, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import Tensor, nn


class StandardisedConv(nn.Conv2d):
    """Weight standardisation as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-5
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def around(norm: nn.Module, channels: int = 8) -> nn.Module:
    """The norm between two convolutions, a sigmoid after it, so that zeros do not stay zeros."""
    return nn.Sequential(nn.Conv2d(3, channels, 1), norm, nn.Sigmoid(), nn.Conv2d(channels, 2, 1))


NETS = {
    "batch norm with a bias that is not zero where its parameter is": (
        lambda: vectors(
            lambda self, x: (
                F.batch_norm(x.mT, self.m, self.v, self.w, 1 + self.b).mT.sum(-1, keepdim=True).expand(-1, -1, 8)
            ),
            w=parameter(8),
            b=parameter(8),
            m=torch.zeros(8),
            v=torch.ones(8),
        ),
        tokens(width=4),
        8,
    ),
    "batch norm": (lambda: around(nn.BatchNorm2d(8)), image(), 8),
    "batch norm without parameters": (lambda: around(nn.BatchNorm2d(8, affine=False)), image(), 8),
    "batch norm without statistics": (lambda: around(nn.BatchNorm2d(8, track_running_stats=False)), image(), 8),
    "batch norm of vectors": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)),
        torch.randn(3, 4),
        8,
    ),
    "batch norm of volumes": (
        lambda: nn.Sequential(nn.Conv3d(1, 8, 1), nn.BatchNorm3d(8), nn.Conv3d(8, 2, 1)),
        torch.randn(2, 1, 2, 2, 2),
        8,
    ),
    "instance norm": (lambda: around(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), image(), 8),
    "instance norm without parameters": (lambda: around(nn.InstanceNorm2d(8)), image(), 8),
    "instance norm in one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.InstanceNorm1d(8), nn.Conv1d(8, 2, 1)),
        torch.randn(2, 3, 5),
        8,
    ),
    "functional batch norm": (
        lambda: vectors(
            lambda self, x: F.batch_norm(x, self.mean, self.var, self.w, self.b).sigmoid(),
            mean=torch.zeros(8),
            var=torch.ones(8),
            w=parameter(8),
            b=parameter(8),
        ),
        torch.randn(3, 4),
        8,
    ),
    "functional instance norm": (
        lambda: images(
            lambda self, x: F.instance_norm(x, weight=self.w, bias=self.b).sigmoid(), w=parameter(8), b=parameter(8)
        ),
        image(),
        8,
    ),
    "weight standardisation": (
        lambda: nn.Sequential(
            StandardisedConv(3, 8, 3), nn.ReLU(), StandardisedConv(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        image(),
        14,
    ),
}


test_norms_by_channel_keep_the_invariant = invariant_test(NETS)

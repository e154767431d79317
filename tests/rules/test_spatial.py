"""Ops over space: pooling, interpolation, padding, unfolding, pixel shuffle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, masks, net, parameter, plan_for, tokens
from layer_nets import images, invariant_test
from torch import Tensor, nn

import fxprune
from fxprune.channels import Labels
from fxprune.rules import UnsupportedCall, spatial

NETS = {
    "pools": (
        lambda: images(
            lambda self, x: (
                F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, 3)
            )
        ),
        image(),
        8,
    ),
    "pooling modules": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.AvgPool2d(3, 1, 1),
            nn.LPPool2d(2, 2, 1),
            nn.AdaptiveMaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "pools in one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 1), nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Conv1d(8, 2, 1)
        ),
        torch.randn(2, 3, 8),
        8,
    ),
    "pools in three dimensions": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 8, 1), nn.MaxPool3d(2), nn.AvgPool3d(1), nn.AdaptiveAvgPool3d(1), nn.Conv3d(8, 2, 1)
        ),
        torch.randn(2, 1, 4, 4, 4),
        8,
    ),
    "max pool with indices": (
        lambda: images(lambda self, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        image(),
        8,
    ),
    "max unpooling": (
        lambda: net(
            lambda self, x: self.out(F.max_unpool2d(self.b(self.pool(self.a(x))[0]), self.pool(self.a(x))[1], 2)),
            a=nn.Conv2d(3, 8, 1),
            pool=nn.MaxPool2d(2, return_indices=True),
            b=nn.Conv2d(8, 8, 1),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "a max unpooling module in three dimensions": (
        lambda: net(
            lambda self, x: self.out(self.unpool(*self.pool(self.a(x)))),
            a=nn.Conv3d(1, 8, 1),
            pool=nn.MaxPool3d(2, return_indices=True),
            unpool=nn.MaxUnpool3d(2),
            out=nn.Conv3d(8, 2, 1),
        ),
        torch.randn(2, 1, 4, 4, 4),
        8,
    ),
    "a pool over channels is frozen": (
        lambda: images(lambda self, x: F.max_pool1d(x.flatten(2).mT, 2).mT.unflatten(2, (6, 6)), out=4),
        image(),
        0,
    ),
    "padding modules of all kinds": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.CircularPad2d(1),
            nn.ReplicationPad2d((1, 0, 0, 1)),
            nn.ConstantPad2d((0, 1, -1, 1), 0.5),
            nn.Conv2d(8, 2, 3),
        ),
        image(),
        8,
    ),
    "a padding module that shifts tokens": (
        lambda: net(
            lambda self, x: self.out(self.shift(self.a(x)) + self.a(x)),
            a=nn.Linear(4, 6),
            shift=nn.ZeroPad2d((0, 0, 1, -1)),
            out=nn.Linear(6, 2),
        ),
        tokens(),
        6,
    ),
    "interpolation": (
        lambda: images(
            lambda self, x: (
                F.interpolate(x, scale_factor=2)
                + F.interpolate(x, (12, 12), mode="bilinear", align_corners=True)
                + F.interpolate(x, size=12, mode="bicubic")
            )
        ),
        image(),
        8,
    ),
    "upsampling modules": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Upsample(scale_factor=2), nn.UpsamplingBilinear2d(scale_factor=2), nn.Conv2d(8, 2, 1)
        ),
        image(),
        8,
    ),
    "upsampling in one and three dimensions": (
        lambda: net(
            lambda self, x, y: (
                self.b(F.interpolate(self.a(x), 9, mode="linear")),
                self.d(F.interpolate(self.c(y), 3, mode="trilinear")),
            ),
            a=nn.Conv1d(3, 8, 1),
            b=nn.Conv1d(8, 2, 1),
            c=nn.Conv3d(1, 5, 1),
            d=nn.Conv3d(5, 2, 1),
        ),
        (torch.randn(2, 3, 4), torch.randn(2, 1, 2, 2, 2)),
        13,
    ),
    "sampling at coordinates": (
        lambda: net(
            lambda self, x, at: self.b(F.grid_sample(self.a(x), at, align_corners=False)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 2, 1),
        ),
        (image(), torch.rand(2, 4, 4, 2)),
        8,
    ),
    "coordinates that a layer makes are whole": (
        lambda: net(
            lambda self, x: self.b(F.grid_sample(self.a(x), self.at(x).permute(0, 2, 3, 1), align_corners=False)),
            a=nn.Conv2d(3, 8, 1),
            at=nn.Conv2d(3, 2, 1),
            b=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "space padded": (
        lambda: images(lambda self, x: F.pad(F.pad(x, (1, 1, 0, 2)), (2, 2, 0, 0), "circular") + 1),
        image(),
        8,
    ),
    "space padded by reflection": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ReflectionPad2d(1),
            nn.ZeroPad2d(1),
            nn.ReplicationPad2d(1),
            nn.ConstantPad2d(1, 0.5),
            nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "channels padded for a residual sum": (
        lambda: net(
            lambda self, x: self.c(F.pad(y := self.a(x), (0, 0, 0, 0, 2, 3)) + self.b(y)),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(4, 9, 1),
            c=nn.Conv2d(9, 2, 1),
        ),
        image(),
        9,
    ),
    "space padded by amounts in tensors": (
        lambda: images(
            lambda self, x: x + F.pad(self.table, (0, self.n - 1)), table=parameter(8, 6, 5), n=torch.tensor(2)
        ),
        image(),
        8,
    ),
    "channels padded by something": (
        lambda: images(lambda self, x: F.pad(x, (0, 0, 0, 0, 1, 1), value=0.5), out=10),
        image(),
        8,
    ),
    "what is padded by something along other dimensions is not zero": (
        lambda: net(
            lambda self, x: (
                (F.pad(self.a(x), (0, 0, 0, 2), value=0.5).mT @ F.pad(self.b(x), (0, 1, 0, 2), value=0.5)).mT
                @ self.c(x).transpose(1, 2).mean(2, keepdim=True).relu()
            ),
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 6),
            c=nn.Linear(4, 8),
        ),
        tokens(),
        None,
    ),
    "channels cropped by padding are frozen": (
        lambda: images(lambda self, x: F.pad(x, (0, 0, 0, 0, -1, -1)), out=6),
        image(),
        0,
    ),
    "windows by unfold": (
        lambda: net(
            lambda self, x: self.b(F.unfold(self.a(x), 2, stride=2).mT), a=nn.Conv2d(3, 8, 1), b=nn.Linear(32, 2)
        ),
        image(),
        8,
    ),
    "windows by the unfold module, folded back": (
        lambda: images(
            lambda self, x: F.fold(self.u(x).relu(), (6, 6), 2, stride=2) + self.f(self.u(x)),
            u=nn.Unfold(2, stride=2),
            f=nn.Fold((6, 6), 2, stride=2),
        ),
        image(),
        8,
    ),
    "windows of the tensor method": (
        lambda: images(lambda self, x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))),
        image(),
        8,
    ),
    "pixel shuffle": (lambda: images(lambda self, x: F.pixel_shuffle(x, 2), wide=12, out=3), image(), 3),
    "pixel unshuffle": (lambda: images(lambda self, x: F.pixel_unshuffle(x, 2), wide=3, out=12), image(), 3),
    "pixel shuffle modules": (
        lambda: images(
            lambda self, x: self.down(self.up(x)), wide=12, out=12, up=nn.PixelShuffle(2), down=nn.PixelUnshuffle(2)
        ),
        image(),
        3,
    ),
}


test_ops_over_space_keep_the_invariant = invariant_test(NETS)


def test_padding_by_one_tensor_is_not_supported() -> None:
    with pytest.raises(UnsupportedCall, match="padding by amounts that are a tensor"):
        spatial.pad.propagate(None, Labels.plain((2, 3)), Labels.plain((2,)))


def test_what_is_not_padded_in_the_example_alone_is_not_zero() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        def even(y: Tensor) -> Tensor:
            return F.pad(y, (0, 0, 0, y.shape[1] % 2), value=0.5)

        return even(self.a(x)) @ even(self.b(x)).mT

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(4, 8))
    graph = check_invariant(model, tokens(6))
    alive = next(masks(graph, 1))
    assert fxprune.verify(model, fxprune.rewrite(graph, plan_for(graph, alive)), tokens(5).double()) <= 1e-9

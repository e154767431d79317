"""What depends on where entries lie in memory stays where it is; what does not can be pruned."""

from __future__ import annotations

from typing import Any

import torch
from invariant import check_invariant, image, net
from layer_nets import images, invariant_test
from torch import Tensor, nn

import fxprune


def windows(self: Any, x: Tensor) -> Tensor:
    y = self.b(self.a(x))
    b, c, h, w = y.shape
    s = y.stride()
    return self.out(y.as_strided((b, c, h, w - 2, 3), (*s, s[3])).mean(-1))


def beyond_the_slice(self: Any, x: Tensor) -> Tensor:
    # The second sample is read outside the slice: the other half of the channels must stay too.
    return self.out(self.a(x)[:, 4:].as_strided((2, 4, 6, 6), (288, 36, 6, 1)))


NETS = {
    "windows over positions": (
        lambda: net(windows, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 8, 1), out=nn.Conv2d(8, 2, 1)),
        image(),
        6,
    ),
    "memory outside a slice": (
        lambda: net(beyond_the_slice, a=nn.Conv2d(3, 8, 1), out=nn.Conv2d(4, 2, 1)),
        image(),
        0,
    ),
    "a stride that no channel decides": (
        lambda: images(lambda self, x: x if x.stride(-1) == 1 else x.contiguous()),
        image(),
        8,
    ),
    "a stride that the channels decide": (
        lambda: images(lambda self, x: x if x.stride(0) == 8 * x.shape[2] * x.shape[3] else x.contiguous()),
        image(),
        0,
    ),
    "an offset": (lambda: images(lambda self, x: x + x[:, 2:].storage_offset()), image(), 0),
}

test_channels = invariant_test(NETS, one_batch=["memory outside a slice"])


def test_windows_are_right_at_another_size() -> None:
    model = net(windows, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 8, 1), out=nn.Conv2d(8, 2, 1)).double().eval()
    pruned = fxprune.prune(model, 0.9, example_inputs=image().double(), compensate=False)
    assert fxprune.verify(model, pruned, image(size=9, batch=3).double()) <= 1e-9


def test_writes_into_strided_memory_are_seen() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        torch.as_strided(y, y.shape, y.stride()).add_(1)
        return self.out(y)

    check_invariant(net(forward, a=nn.Conv2d(3, 8, 1), out=nn.Conv2d(8, 2, 1)), image(), 0)

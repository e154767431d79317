"""Ops that split and merge dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import Tensor, nn

X = torch.randn(3, 4)


def shuffle(self: nn.Module, x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def heads(self: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    y = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
    return self.out(y.transpose(1, 2).reshape(b, n, c))


def squeeze_excite(self: Any, x: Tensor) -> Tensor:
    b, c = x.shape[:2]
    y = F.adaptive_avg_pool2d(x, 1).view(b, c)
    return x * self.up(self.down(y).relu()).sigmoid().view(b, c, 1, 1)


SE = {"down": nn.Linear(8, 3), "up": nn.Linear(3, 8)}


def with_no_registers(self: Any, x: Tensor) -> Tensor:
    """None of a number that may be zero: nothing is joined to the tokens, and nothing to what is flattened."""
    tokens = self.a(x)
    registers = self.registers.unsqueeze(0).expand(len(x), -1, -1).reshape(len(x), -1, self.registers.shape[-1])
    tokens = self.b(torch.cat([registers, tokens], 1))
    return torch.cat([tokens.flatten(1), tokens[:, 7:].reshape(len(x), -1)], 1)


NETS = {
    "tensors without elements": (
        lambda: net(with_no_registers, a=nn.Linear(4, 8), b=nn.Linear(8, 2), registers=parameter(0, 8)),
        tokens(),
        8,
    ),
    "flatten between conv and linear": (
        lambda: net(lambda self, x: self.b(self.a(x).flatten(1)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8 * 36, 2)),
        image(),
        8,
    ),
    "a flatten module between conv and linear": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 2)),
        image(),
        8,
    ),
    "view by batch between conv and linear": (
        lambda: net(lambda self, x: self.b(self.a(x).view(x.size(0), -1)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2)),
        image(),
        8,
    ),
    "view by the number of elements of a shape": (
        lambda: net(
            lambda self, x: self.b((y := self.a(x)).view(-1, y.shape[1:].numel()) * (y.shape.numel() / y.shape[0])),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(8 * 36, 2),
        ),
        image(),
        8,
    ),
    "view by sizes of which two follow the input": (
        lambda: images(
            lambda self, x: x.view(-1, x.shape[1] * x.shape[2], x.shape[3]).view(-1, 8, x.shape[2], x.shape[3])
        ),
        image(),
        8,
    ),
    "view by literal between conv and linear": (
        lambda: net(lambda self, x: self.b(self.a(x).view(-1, 288)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2)),
        image(),
        8,
    ),
    "reshape by the product of sizes": (
        lambda: net(
            lambda self, x: self.b((y := self.a(x)).reshape(y.shape[0], y.shape[1] * y.shape[2] * y.shape[3])),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(288, 2),
        ),
        image(),
        8,
    ),
    "unflatten from linear to conv": (
        lambda: net(
            lambda self, x: self.b(self.a(x).unflatten(1, (8, 3, 3))), a=nn.Linear(4, 72), b=nn.Conv2d(8, 2, 1)
        ),
        X,
        8,
    ),
    "an unflatten module": (
        lambda: nn.Sequential(nn.Linear(4, 40), nn.Unflatten(1, (20, 2, 1)), nn.Conv2d(20, 2, 1)),
        X,
        20,
    ),
    "heads of attention": (lambda: net(heads, qkv=nn.Linear(8, 24), out=nn.Linear(8, 2)), tokens(5, 8), 4),
    "more heads than channels in each": (
        lambda: vectors(lambda self, x: (x.view(x.shape[0], 4, 2) * 2).flatten(1)),
        X,
        4,
    ),
    "channel shuffle": (lambda: images(shuffle), image(), 4),
    "channel shuffle of many shuffled groups": (lambda: images(lambda self, x: shuffle(self, x, 4)), image(), 4),
    "channel shuffle between grouped convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
        ),
        image(),
        None,
    ),
    "squeeze and excite": (lambda: images(squeeze_excite, **SE), image(), 11),
    "batch and channels merged": (
        lambda: images(
            lambda self, x: F.avg_pool2d(x.reshape(x.shape[0] * x.shape[1], 1, 6, 6), 3, 1, 1).reshape(x.shape)
        ),
        image(),
        8,
    ),
    "reshaped across channels is frozen": (
        lambda: vectors(lambda self, x: x.reshape(-1, 6), wide=8, out=6),
        X,
        None,
    ),
    "reshape and view as another tensor": (
        lambda: vectors(lambda self, x: x.view(-1, 8, 1).view_as(x) + x.unsqueeze(0).reshape_as(x)),
        X,
        8,
    ),
    "channels split by three axes": (
        lambda: vectors(lambda self, x: x.view(-1, 2, 3, 2).permute(0, 3, 1, 2).flatten(1), wide=12, out=12),
        X,
        3,
    ),
    "channel shuffle module": (
        lambda: images(lambda self, x: self.shuffle(x), shuffle=nn.ChannelShuffle(4)),
        image(),
        None,
    ),
}


test_splitting_and_merging_keep_the_invariant = invariant_test(NETS, one_batch=["reshaped across channels is frozen"])


@pytest.mark.parametrize("batch", [1, 3])
def test_reshapes_are_right_whatever_the_batch_was_when_they_were_traced(batch: int) -> None:
    check_invariant(net(heads, qkv=nn.Linear(8, 24), out=nn.Linear(8, 2)), tokens(5, 8, batch), 4)
    check_invariant(images(shuffle), image(batch=batch), 4)
    check_invariant(images(squeeze_excite, **SE), image(batch=batch), 11)

"""Ops that split and merge dimensions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, masks, net, parameter, plan_for, prunable, randomise, tokens
from layer_nets import images, invariant_test, vectors
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.verification import TOLERANCE

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


def transposed_tokens(self: Any, x: Tensor) -> Tensor:
    """As the MAnet of segmentation_models.pytorch, which takes rows of tokens for channels."""
    b, c, h, w = x.shape
    return x.flatten(2).transpose(1, 2).reshape(b, c, h, w)


def tokens_and_back(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.flatten(2).transpose(1, 2) * 2
    return y.transpose(1, 2).reshape(b, c, h, w) + y.permute(0, 2, 1).view(b, -1, h, w)


def windows(self: Any, x: Tensor, size: int = 2) -> Tensor:
    """Windows folded into the batch, attention in each, and back, as in Swin."""
    b, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).view(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    y = y.reshape(-1, size * size, c)
    q, k, v = self.qkv(y).reshape(*y.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    y = self.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(y.shape))
    y = y.view(b, h // size, w // size, size, size, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
    return y.permute(0, 3, 1, 2)


def windows_beside_channels(self: Any, x: Tensor) -> Tensor:
    """Rows folded into batch and channels, as in MobileViT."""
    b, c, h, w = x.shape
    y = x.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2).reshape(b, c, h * w // 4, 4).transpose(1, 3)
    y = (y.reshape(b * 4, h * w // 4, c) * 2).view(b, 4, h * w // 4, -1).transpose(1, 3)
    return y.reshape(b * c * (h // 2), w // 2, 2, 2).transpose(1, 2).reshape(b, c, h, w)


def positions_before_channels(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, h * w * c).reshape(b, c, h, w)


def samples_of_channels(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return (x.transpose(0, 1).reshape(b * c, h, w) * 2).reshape(c, b, h, w).transpose(0, 1)


def samples_taken_for_channels(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return (x.transpose(0, 1).reshape(b * c, h, w) * 2).reshape(b, c, h, w)


def space_to_depth(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def depth_to_space(self: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, h * 2, w * 2)


# What is done to 16 channels, how many go on, and how many channels can be pruned in all.
AT_OTHER_SIZES: dict[str, tuple[Any, int, int, dict[str, Any]]] = {
    "rows of tokens taken for channels": (transposed_tokens, 16, 0, {}),
    "rows of tokens taken for channels, and summed": (
        lambda self, x: transposed_tokens(self, x).sum((2, 3), keepdim=True),
        16,
        0,
        {},
    ),
    "tokens and back": (tokens_and_back, 16, 16, {}),
    "windows": (windows, 16, 40, {"qkv": nn.Linear(16, 48), "proj": nn.Linear(16, 16)}),
    "windows beside channels": (windows_beside_channels, 16, 16, {}),
    "positions before channels": (positions_before_channels, 16, 0, {}),
    "samples of channels": (samples_of_channels, 16, 16, {}),
    "samples taken for channels": (samples_taken_for_channels, 16, 0, {}),
    "channel shuffle": (shuffle, 16, 8, {}),
    "space to depth": (space_to_depth, 64, 16, {}),
    "depth to space": (depth_to_space, 4, 4, {}),
    "pixel shuffle": (lambda self, x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), 16, 16, {}),
}


@pytest.mark.parametrize(("size", "batch"), [(4, 2), (4, 1), (8, 3)])
@pytest.mark.parametrize("name", AT_OTHER_SIZES)
def test_reshapes_are_right_at_sizes_that_the_example_did_not_have(name: str, size: int, batch: int) -> None:
    function, out, channels, parts = AT_OTHER_SIZES[name]
    model = randomise(images(function, 16, out, **parts))
    graph = fxprune.analyze(fxprune.trace(model, image(3, size, batch).double()))
    assert prunable(graph) == channels, str(graph)
    for alive in masks(graph, 2):
        pruned = fxprune.rewrite(graph, plan_for(graph, alive))
        for other, samples in ((4, 2), (6, 1), (8, 3), (12, 2)):
            assert fxprune.verify(model, pruned, image(3, other, samples).double()) <= TOLERANCE


def flattened_to_a_number(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x).relu().view(-1, 288))


def test_a_size_that_mixes_samples_is_refused_after_pruning() -> None:
    """A view of 288 entries takes an image of twice the height for two samples, and channels for positions."""
    model = randomise(net(flattened_to_a_number, a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2)))
    graph = fxprune.analyze(fxprune.trace(model, image().double()))
    assert prunable(graph) == 8
    pruned = fxprune.rewrite(graph, plan_for(graph, next(masks(graph, 1))))
    assert fxprune.verify(model, pruned, image(batch=5).double()) <= TOLERANCE
    tall = torch.randn(2, 3, 12, 6, dtype=torch.float64)
    assert model(tall).shape == (4, 2)
    with pytest.raises(FxpruneError, match=r"relu.size\(2\)` is 12 here, and was 6"):
        pruned(tall)

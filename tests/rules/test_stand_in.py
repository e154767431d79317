"""The entries of removed channels, where an op reads all channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, prunable
from layer_nets import WRITTEN_OUT, images, invariant_test
from torch import Tensor

import fxprune

NETS = {
    **{name: (make, image(), 8) for name, make in WRITTEN_OUT.items()},
    "a variance of positions, then of channels": (
        lambda: images(
            lambda self, x: (
                (y := x - x.mean((2, 3), keepdim=True).mean(1, keepdim=True))
                / (y.square().mean((2, 3), keepdim=True).mean(1, keepdim=True) + 0.1).sqrt()
            )
        ),
        image(),
        8,
    ),
    "the largest of positions, then of channels": (
        lambda: images(lambda self, x: x * x.cosh().amax((2, 3), keepdim=True).std(1, keepdim=True)),
        image(),
        8,
    ),
    "a mean of channels without their positions is frozen": (
        lambda: images(lambda self, x: x * x.cosh().mean((2, 3)).mean(1, keepdim=True)[..., None, None]),
        image(),
        0,
    ),
    "what is written into on the way is frozen": (
        lambda: images(lambda self, x: x * ((y := x - (u := x.mean(1, keepdim=True))), u.mul_(2), y.exp())[2].mean()),
        image(),
        0,
    ),
    "what is written into after its mean was taken": (
        lambda: images(lambda self, x: (m := x.mean(1, keepdim=True), x.add_(1))[1] * m),
        image(),
        8,
    ),
    "what is written into after its variance was taken is frozen": (
        lambda: images(lambda self, x: (v := x.var(1, keepdim=True), x[:, :, 1:].add_(1), x)[2] * v),
        image(),
        0,
    ),
}


test_ops_that_read_all_channels_keep_the_invariant = invariant_test(NETS)


def test_what_stands_in_is_made_once_however_often_it_is_used() -> None:
    def grown(self: Any, x: Tensor) -> Tensor:
        y = x.cosh()
        for _ in range(40):
            y = (y + y.tanh()) * 0.5
        return x - y.mean(1, keepdim=True)

    check_invariant(images(grown), image(), 8, plans=1)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5, True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "dropout in place": lambda x: F.dropout(x, 0.5, True, inplace=True),
    "dropout of channels": lambda x: F.dropout2d(x, 0.5, True),
    "torch.feature_dropout": lambda x: torch.feature_dropout(x, 0.5, True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "rrelu": lambda x: torch.rrelu(x - 0.7, 0.1, 0.9, True),
    "bernoulli": torch.bernoulli,
    "the method bernoulli": lambda x: x.bernoulli(),
    "poisson": torch.poisson,
    "gumbel_softmax": F.gumbel_softmax,
    "normal": lambda x: torch.normal(x, 0.1),
    "noise": lambda x: x + torch.rand_like(x),
    "noise in place": lambda x: x.uniform_(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_entries_before_a_mean_over_channels_are_not_made_once_for_all_of_them(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x - DRAWS[name](x.sigmoid()).mean(1, keepdim=True)

    def plain(self: Any, x: Tensor) -> Tensor:
        return x - x.sigmoid().mean(1, keepdim=True)

    for _ in range(2):  # the second trace knows the results of the first
        assert prunable(fxprune.analyze(fxprune.trace(images(forward), image()))) == 0
    assert prunable(fxprune.analyze(fxprune.trace(images(plain), image()))) == 8

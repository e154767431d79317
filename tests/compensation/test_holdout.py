"""Samples that judge are apart from those that were fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.compensation.holdout import split_apart
from fxprune.data import Batch


def _net(images: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    return fxprune.trace(net, images[:1])


@pytest.mark.parametrize("part", [0.25, 0.5])
def test_samples_that_are_alike_are_on_the_same_side(part: float) -> None:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(20, 3, 8, 8, generator=random)
    copies = images + 0.01 * torch.randn(20, 3, 8, 8, generator=random)
    order = torch.randperm(40, generator=random)
    fit, judge = split_apart(_net(images), Batch((torch.cat([images, copies])[order],), {}), part, seed=0)
    assert judge is not None
    assert (fit.size, judge.size) == (40 - round(40 * part), round(40 * part))
    sides = [{_nearest(image, images) for image in side.args[0]} for side in (fit, judge)]
    # The number to hold out may end amid a pair; samples by chance would part at least six.
    assert len(sides[0] & sides[1]) <= 2


def _nearest(image: Tensor, images: Tensor) -> int:
    return int((images - image).flatten(1).norm(dim=1).argmin())


def test_a_single_sample_judges_nothing() -> None:
    image = torch.randn(1, 3, 8, 8)
    fit, judge = split_apart(_net(image), Batch((image,), {}), 0.5, seed=0)
    assert judge is None
    assert torch.equal(fit.args[0], image)

"""Batches made from a model's own BatchNorm statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels import ChannelGraph
from fxprune.compensation import synthesis
from fxprune.compensation.synthesis import fit_to_statistics, mismatch, pink_noise


def trained(size: int = 12) -> ChannelGraph:
    """A net whose BatchNorm has seen images of mean 2 and deviation 3."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for _ in range(100):
        model(2 + 3 * torch.randn(8, 3, size, size))
    return fxprune.analyze(fxprune.trace(model.eval(), torch.zeros(1, 3, size, size), copy=False))


@pytest.mark.parametrize("size", [12, 64], ids=["by values", "by Fourier coefficients"])
def test_statistics_come_near_to_those_remembered(size: int) -> None:
    model = trained(size).module
    noise = pink_noise((16, 3, size, size), torch.Generator().manual_seed(0))
    batch = fit_to_statistics(model, noise)
    assert batch.shape == (16, 3, size, size)
    wanted = torch.full((3,), 2.0)
    before, after = ((made.mean((0, 2, 3)) - wanted).abs().max() for made in (noise, batch))
    assert after < 0.3 * before
    assert mismatch(model, batch) < 0.1 * mismatch(model, noise)
    assert torch.equal(batch, fit_to_statistics(model, noise))


def test_the_model_is_as_before() -> None:
    graph = trained()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    strides = [parameter.stride() for parameter in graph.module.parameters()]
    fit_to_statistics(graph.module, torch.randn(4, 3, 12, 12), steps=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())
    assert strides == [parameter.stride() for parameter in graph.module.parameters()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in graph.module.parameters())


@pytest.mark.parametrize("shape", [(4, 3, 16, 20), (4, 3, 5, 16, 16), (64, 10)])
def test_noise_has_unit_scale(shape: tuple[int, ...]) -> None:
    noise = pink_noise(shape, torch.Generator().manual_seed(0))
    assert noise.shape == shape
    assert 0.7 < float(noise.std()) < 1.6


@pytest.mark.parametrize(
    ("head", "sizes"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), [35, 35, 35, 35, 70]),
        (nn.Sequential(nn.Flatten(), nn.Linear(4 * 68 * 68, 2)), [70] * 5),
    ],
    ids=["any resolution", "one resolution"],
)
def test_images_are_made_at_half_the_resolution_first_where_the_model_takes_that(
    head: nn.Module, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), head)
    seen: list[int] = []
    mismatch = synthesis._StatisticsReader.mismatch

    def watched(reader: Any, batch: Tensor) -> Tensor:
        seen.append(batch.shape[-1])
        return mismatch(reader, batch)

    monkeypatch.setattr(synthesis._StatisticsReader, "mismatch", watched)
    batch = fit_to_statistics(fxprune.trace(model, torch.zeros(1, 3, 70, 70)), torch.randn(2, 3, 70, 70), steps=5)
    assert seen == sizes
    assert batch.shape == (2, 3, 70, 70)

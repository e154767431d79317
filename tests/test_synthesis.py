"""Batches made from a model's own BatchNorm statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune.channels import ChannelGraph
from fxprune.synthesis import pink_noise, synthesize


def trained() -> ChannelGraph:
    """A net whose BatchNorm has seen images of mean 2 and deviation 3."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for _ in range(100):
        model(2 + 3 * torch.randn(8, 3, 12, 12))
    return fxprune.analyze(fxprune.trace(model.eval(), torch.zeros(1, 3, 12, 12), copy=False))


def test_statistics_come_near_to_those_remembered() -> None:
    graph = trained()
    noise = synthesize(graph, 16, steps=0)
    batch = synthesize(graph, 16, steps=60)
    assert batch.shape == (16, 3, 12, 12)
    wanted = torch.full((3,), 2.0)
    before, after = ((made.mean((0, 2, 3)) - wanted).abs().max() for made in (noise, batch))
    assert after < 0.3 * before
    assert torch.equal(batch, synthesize(graph, 16, steps=60))


def test_the_model_is_as_before() -> None:
    graph = trained()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    strides = [parameter.stride() for parameter in graph.module.parameters()]
    synthesize(graph, 4, steps=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())
    assert strides == [parameter.stride() for parameter in graph.module.parameters()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in graph.module.parameters())


def test_there_is_none_without_batchnorm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    assert synthesize(fxprune.analyze(fxprune.trace(model, torch.zeros(1, 3, 8, 8)))) is None


@pytest.mark.parametrize("shape", [(4, 3, 16, 20), (4, 3, 5, 16, 16), (64, 10)])
def test_noise_has_unit_scale(shape: tuple[int, ...]) -> None:
    noise = pink_noise(shape, torch.Generator().manual_seed(0))
    assert noise.shape == shape
    assert 0.7 < float(noise.std()) < 1.6

"""What tests of scores share: nets, what is known of their channels, and samples."""

from __future__ import annotations

from typing import Any

import torch
from invariant import net
from torch import Tensor, nn

import fxprune
from fxprune.channels import ChannelGraph, Scores


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 1, bias=False)
        self.norm_down = nn.BatchNorm2d(12)
        self.up = nn.Conv2d(12, 8, 1, bias=False)
        self.norm_up = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.norm_up(self.up(self.norm_down(self.down(x)).relu()))
        return self.head(x.mean((2, 3)))


def analysed(model: nn.Module) -> ChannelGraph:
    return fxprune.analyze(fxprune.trace(model.eval(), torch.randn(1, 3, 8, 8)))


def hidden(graph: ChannelGraph, scores: Scores, name: str = "down") -> Scores:
    (group,) = (group for group in graph.groups if group.name == name)
    return scores[group.channels]


def small() -> tuple[ChannelGraph, Tensor]:
    """Two convolutions of eight channels and a head, and 64 images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    data = torch.randn(64, 3, 8, 8)
    return fxprune.analyze(fxprune.trace(model.eval(), data[:1])), data


def turned() -> nn.Module:
    """A net that moves the batch (N, 7, 3) to the second dimension, as recurrent layers take it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x.transpose(0, 1)).relu()).mean(0)

    torch.manual_seed(0)
    return net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 4))


def convolutions() -> tuple[nn.Sequential, ChannelGraph]:
    """A net in float64 in which nothing reads channel 3 of the first layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 3)),
    )
    with torch.no_grad():
        net[2].weight[:, 3] = 0.0
    net.double().eval()
    return net, fxprune.analyze(fxprune.trace(net, torch.zeros(1, 1, 4, 4, dtype=torch.float64)))


def samples(labels: bool) -> list[Any]:
    """Twelve images for it in three batches, with or without labels."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 1, 4, 4, generator=random, dtype=torch.float64)
    classes = torch.arange(12) % 3
    return [(inputs[i : i + 5], classes[i : i + 5]) if labels else inputs[i : i + 5] for i in range(0, 12, 5)]

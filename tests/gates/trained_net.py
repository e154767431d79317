"""A small trained net, and gates that are learned for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.gates import Gates, learn_gates

__all__ = ["learn", "trained_net"]


class _Residual(nn.Module):
    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        conv, self.scale = nn.Conv2d(channels, channels, 3, padding=1), scale
        self.branch = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x) * self.scale


def trained_net(blocks: tuple[float, ...] = ()) -> tuple[fxprune.ChannelGraph, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small net that tells which quarter of a picture is bright, and its data.

    Args:
        blocks: what the residual branches after its first convolution are multiplied by.
    """
    torch.manual_seed(0)
    inputs = torch.randn(256, 1, 8, 8) * 0.5
    labels = torch.arange(256) % 4
    for number, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        inputs[number, 0, row : row + 4, column : column + 4] += 1.0
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), *(_Residual(12, scale) for scale in blocks)),
        *(nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
    graph = fxprune.analyze(fxprune.trace(net.eval(), inputs[:1]))
    return graph, [(inputs[i : i + 32], labels[i : i + 32]) for i in range(0, 256, 32)]


def learn(graph: fxprune.ChannelGraph, data: list[tuple[torch.Tensor, torch.Tensor]], **options: object) -> Gates:
    settings = {"flops": 0.5, "epochs": 6, "train_weights": False, "progress": False, **options}
    return learn_gates(graph, data, **settings)  # type: ignore[arg-type]

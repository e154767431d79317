"""A small pruned model and its report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune

IMAGE = torch.zeros(1, 3, 12, 12)


class Residual(nn.Module):
    """A residual block, a product of two activations, a weight that is no module's, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.one = nn.Conv2d(16, 24, 1)
        self.two = nn.Conv2d(24, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu())
        x = self.up(x).relu().flatten(2)
        return self.head((x @ x.transpose(1, 2)).mean(1)) * self.scale


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def small(model: nn.Module) -> nn.Module:
    return fxprune.prune(model, 0.5, example_inputs=IMAGE, compensate=False)


@pytest.fixture(scope="module")
def made(model: nn.Module, small: nn.Module) -> fxprune.Report:
    return fxprune.report(small, original=model, repeats=2)

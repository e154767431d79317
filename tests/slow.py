"""A model one of whose ops waits, by a clock of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SECONDS = 1e-3  # that the slow op takes for each of its channels


class Clock:
    """Goes on where it is looked at, and where an op says so: machines that run tests are too busy to time anything."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


CLOCK = Clock()


@torch.library.custom_op("fxprune_tests::slow", mutates_args=())
def slow(x: Tensor) -> Tensor:
    CLOCK.now += SECONDS * x.shape[1]
    return x.clone()


@slow.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


slow.register_autograd(lambda context, gradient: gradient)


class TwoBranches(nn.Module):
    """Alike in FLOPs; the one waits for each of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.runs = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(3, 32, 3, padding=1)
        self.head = nn.Conv2d(64, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.ops.fxprune_tests.slow(self.waits(x)), self.runs(x)], 1))


def kept(pruned: nn.Module, name: str) -> int:
    """The number of outputs that a layer has left."""
    return int(pruned.get_submodule(name).weight.shape[0])  # type: ignore[union-attr,index]

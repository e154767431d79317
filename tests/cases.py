"""Models for tests, each written as a forward pass and the layers that it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from invariant import check_invariant, net
from torch import nn

import fxprune

__all__ = ["Case", "Cases", "conv", "linears"]


@dataclass(frozen=True)
class Case:
    """A model, its example inputs, how many of its channels can be pruned, and whether it takes other batch sizes."""

    make: Callable[[], nn.Module]
    inputs: Any
    channels: int
    other_batch: bool

    def check(self) -> fxprune.ChannelGraph:
        """Check that the model is pruned correctly."""
        torch.manual_seed(0)
        graph = check_invariant(self.make(), self.inputs, self.channels, other_batch=self.other_batch)
        assert np.isfinite(fxprune.scores(graph)).all()
        return graph


class Cases(dict[str, Case]):
    """Cases by name."""

    def model(self, inputs: Any, channels: int, /, *, other_batch: bool = True, **parts: Any) -> Callable[[Any], Any]:
        """Decorate a function: the forward pass of a model with the given parts."""
        return self._add(lambda forward: lambda: net(forward, **parts), inputs, channels, other_batch)

    def made(self, inputs: Any, channels: int, /, *, other_batch: bool = True) -> Callable[[Any], Any]:
        """Decorate a class, or a function that returns a model."""
        return self._add(lambda make: make, inputs, channels, other_batch)

    def _add(self, maker: Callable[[Any], Any], inputs: Any, channels: int, other_batch: bool) -> Callable[[Any], Any]:
        def register(decorated: Any) -> Any:
            assert decorated.__name__ not in self, f"there are two cases {decorated.__name__}"
            self[decorated.__name__] = Case(maker(decorated), inputs, channels, other_batch)
            return decorated

        return register


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """A convolution that keeps the size of the image, BatchNorm and SiLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


def linears(names: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, nn.Module]:
    """Linear layers of the same shape, by name."""
    return {name: nn.Linear(inputs, outputs, bias=bias) for name in names.split()}

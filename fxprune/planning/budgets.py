"""What a plan may cost: FLOPs, and time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.channels.polynomial import Polynomial
from fxprune.errors import FxpruneError

__all__ = ["Budget", "check_latency", "flops_target", "latency_budget"]


@dataclass(frozen=True, eq=False)
class Budget:
    """What the kept channels may cost."""

    polynomial: Polynomial
    target: int

    def holds(self, alive: npt.NDArray[np.bool_]) -> bool:
        """Whether these channels cost no more."""
        return self.polynomial(alive) <= self.target


def check_latency(latency: Any) -> None:
    """Check that a budget of time is a fraction."""
    if isinstance(latency, bool) or not isinstance(latency, (int, float, np.integer, np.floating)):
        raise FxpruneError(f"latency (={latency!r}) must be a number: a fraction of the model's in (0, 1]")
    if not 0 < latency <= 1:
        raise FxpruneError(f"latency (={latency!r}) must be a fraction of the model's in (0, 1]")


def latency_budget(graph: ChannelGraph, latency: Any) -> Budget:
    """The time that a fraction of the model's allows, as `fxprune.time_channels` measured it."""
    check_latency(latency)
    if graph.latency is None:
        raise FxpruneError(
            f"latency (={latency!r}) needs the time of channels: give what fxprune.time_channels returns"
        )
    return Budget(graph.latency, math.floor(latency * graph.latency.total))


def flops_target(graph: ChannelGraph, flops: Any, latency: Any) -> int:
    """The most FLOPs that a budget allows: half of them by default, all where only the time is limited."""
    if flops is None:
        flops = 0.5 if latency is None else 1.0
    total = graph.flops.total
    if isinstance(flops, bool) or not isinstance(flops, (int, float, np.integer, np.floating)):
        raise FxpruneError(f"flops (={flops!r}) must be a number: a fraction in (0, 1], or a count above 1")
    if not flops > 0 or math.isinf(flops):
        raise FxpruneError(f"flops (={flops!r}) must be positive and finite: a fraction in (0, 1], or a count above 1")
    return math.floor(flops * total) if flops <= 1 else math.floor(flops)

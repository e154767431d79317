"""What is asked of a plan: budgets of FLOPs and of time, and what must stay whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.channels.polynomial import Polynomial
from fxprune.errors import FxpruneError

__all__ = ["Budget", "Request", "as_patterns", "budgets_of", "flops_target"]


@dataclass(frozen=True)
class Request:
    """What is asked of a plan: the arguments of `fxprune.make_plan`, checked.

    Attributes:
        flops: up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs; None for the default.
        latency: a fraction of the model's time, or None for no such budget.
        round_to: the widths that change become multiples of this.
        ignore: names or glob patterns of modules that stay whole.
        depth: whether blocks may be left out.
        width: whether channels may be removed.

    Raises:
        FxpruneError: a value has the wrong type or is out of range.
    """

    flops: float | None = None
    latency: float | None = None
    round_to: int | Literal["auto"] = 1
    ignore: tuple[str, ...] = ()
    depth: bool = False
    width: bool = True

    def __post_init__(self) -> None:
        flops, latency, round_to = self.flops, self.latency, self.round_to
        if flops is not None and not _is_number(flops):
            raise FxpruneError(f"flops (={flops!r}) must be a number: a fraction in (0, 1], or a count above 1")
        if flops is not None and (not flops > 0 or math.isinf(flops)):
            raise FxpruneError(
                f"flops (={flops!r}) must be positive and finite: a fraction in (0, 1], or a count above 1"
            )
        if latency is not None and not (_is_number(latency) and 0 < latency <= 1):
            raise FxpruneError(f"latency (={latency!r}) must be a fraction of the model's, in (0, 1]")
        if round_to != "auto" and (type(round_to) is not int or round_to < 1):
            raise FxpruneError(f"round_to (={round_to!r}) must be a whole number of at least 1, or 'auto'")
        for name in ("depth", "width"):
            if not isinstance(getattr(self, name), bool):
                raise FxpruneError(f"{name} (={getattr(self, name)!r}) must be True or False")
        if not (self.depth or self.width):
            raise FxpruneError("depth=False and width=False leave nothing to prune: give one of the two")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def as_patterns(ignore: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (ignore,) if isinstance(ignore, str) else tuple(ignore)


@dataclass(frozen=True, eq=False)
class Budget:
    """What the kept channels may cost at most."""

    polynomial: Polynomial
    target: int

    def holds(self, alive: npt.NDArray[np.bool_]) -> bool:
        """Whether these channels cost no more than that."""
        return self.polynomial(alive) <= self.target


def budgets_of(graph: ChannelGraph, request: Request) -> list[Budget]:
    """The budget of FLOPs, then that of time if one is requested and `fxprune.time_channels` has measured the graph."""
    budgets = [Budget(graph.flops, flops_target(graph, request.flops, request.latency))]
    if request.latency is not None and graph.latency is not None:
        budgets.append(Budget(graph.latency, math.floor(request.latency * graph.latency.total)))
    return budgets


def flops_target(graph: ChannelGraph, flops: float | None = None, latency: float | None = None) -> int:
    """The most FLOPs that a budget allows.

    Args:
        graph: the analysed model.
        flops: up to 1 a fraction of its FLOPs, above 1 a number of FLOPs. None stands for half of them, or for all if
            the latency is to fall below the model's.
        latency: the budget of time beside it, a fraction of the model's.

    Raises:
        FxpruneError: a budget is not a number, or out of range.

    Examples:
        >>> from fxprune import analyze, trace
        >>> from torch import nn, zeros
        >>> graph = analyze(trace(nn.Linear(4, 8), zeros(1, 4)))
        >>> flops_target(graph), flops_target(graph, 0.75), flops_target(graph, 20)
        (16, 24, 20)
    """
    Request(flops, latency)
    if flops is None:
        flops = 0.5 if latency in (None, 1) else 1.0
    return math.floor(flops * graph.flops.total) if flops <= 1 else math.floor(flops)

"""What is asked of a plan: budgets of FLOPs, parameters, memory and time, and what must stay whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph, labels_in
from fxprune.channels.polynomial import Polynomial, build_polynomial, term, with_blocks
from fxprune.errors import FxpruneError

__all__ = [
    "FEMTOSECONDS",
    "Budget",
    "Request",
    "as_patterns",
    "budgets_of",
    "flops_target",
    "latency_share",
    "parameters_of",
    "shares_of",
]

# Of a second: the unit of time is so small that nothing is lost in a polynomial of whole numbers.
FEMTOSECONDS = 1e15


@dataclass(frozen=True)
class Request:
    """What is asked of a plan: the arguments of `fxprune.make_plan`, checked.

    Attributes:
        flops: up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs per sample; None for the default.
        latency: a fraction of the model's time, a time with its unit ("3ms"), or None for no such budget.
        params: up to 1 a fraction of the model's parameters, above 1 a number of them; None for no such budget.
        memory: up to 1 a fraction of the model's peak memory of activations, above 1 a number of bytes per sample; None
            for no such budget.
        round_to: the widths that change become multiples of this.
        ignore: names or glob patterns of modules that stay whole.
        min_channels: so many channels of each group stay.
        depth: whether blocks may be left out; None is not decided yet, and means no here.
        width: whether channels may be removed.

    Raises:
        FxpruneError: a value has the wrong type or is out of range.
    """

    flops: float | None = None
    latency: float | str | None = None
    params: float | None = None
    memory: float | None = None
    round_to: int | Literal["auto"] = 1
    ignore: tuple[str, ...] = ()
    min_channels: int = 1
    depth: bool | None = None
    width: bool = True

    def __post_init__(self) -> None:
        latency, round_to = self.latency, self.round_to
        for name, value in (("flops", self.flops), ("params", self.params), ("memory", self.memory)):
            if value is not None and not _is_number(value):
                raise FxpruneError(f"{name} (={value!r}) must be a number: a fraction in (0, 1], or a count above 1")
            if value is not None and (not value > 0 or math.isinf(value)):
                raise FxpruneError(
                    f"{name} (={value!r}) must be positive and finite: a fraction in (0, 1], or a count above 1"
                )
        if latency is not None and not (_seconds(latency) if isinstance(latency, str) else _is_fraction(latency)):
            raise FxpruneError(
                f"latency (={latency!r}) must be a fraction of the model's, in (0, 1], or a time such as '3ms'"
            )
        if round_to != "auto" and (type(round_to) is not int or round_to < 1):
            raise FxpruneError(f"round_to (={round_to!r}) must be a whole number of at least 1, or 'auto'")
        if type(self.min_channels) is not int or self.min_channels < 1:
            raise FxpruneError(f"min_channels (={self.min_channels!r}) must be a whole number of at least 1")
        if not isinstance(self.width, bool):
            raise FxpruneError(f"width (={self.width!r}) must be True or False")
        if not isinstance(self.depth, bool | None):
            raise FxpruneError(f"depth (={self.depth!r}) must be True, False, or None for True where there are samples")
        if self.depth is False and not self.width:
            raise FxpruneError("depth=False and width=False leave nothing to prune: give one of the two")


def _is_fraction(value: object) -> bool:
    return _is_number(value) and 0 < value <= 1  # type: ignore[operator]


def _seconds(time: str) -> float:
    """A time with its unit, in seconds; 0 for what is none."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|ms|us|µs)\s*", time)
    return float(found[1]) * {"s": 1.0, "ms": 1e-3}.get(found[2], 1e-6) if found else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def as_patterns(ignore: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (ignore,) if isinstance(ignore, str) else tuple(ignore)


@dataclass(frozen=True, eq=False)
class Budget:
    """What the kept channels may cost at most.

    Attributes:
        polynomial: the cost.
        target: the most that it may be.
        name: of the argument that asks for it.
    """

    polynomial: Polynomial
    target: int
    name: str = "flops"

    @property
    def tightness(self) -> float:
        """How many times as much as this all channels cost."""
        return self.polynomial.total / max(self.target, 1)

    def holds(self, alive: npt.NDArray[np.bool_]) -> bool:
        """Whether these channels cost no more than that."""
        return self.polynomial(alive) <= self.target


def budgets_of(graph: ChannelGraph, request: Request) -> list[Budget]:
    """The budget of FLOPs, then those of parameters, memory and time if they are requested.

    That of time is missing as long as `fxprune.time_channels` has not measured the graph.
    """
    budgets = [Budget(graph.flops, flops_target(graph, request))]
    if request.params is not None:
        parameters = parameters_of(graph)
        budgets.append(Budget(parameters, _count(request.params, parameters.total), "params"))
    if request.memory is not None:
        target = _count(request.memory, graph.memory.total, _samples_of(graph))
        budgets.append(Budget(graph.memory, target, "memory"))
    if request.latency is not None and graph.latency is not None:
        target = math.floor(latency_share(graph, request) * graph.latency.total)
        budgets.append(Budget(graph.latency, target, "latency"))
    return budgets


def shares_of(graph: ChannelGraph, request: Request) -> dict[str, float]:
    """The budgets beside that of FLOPs, by name: each as a fraction of what the model has, at most 1."""
    shares = {}
    for budget in budgets_of(graph, request)[1:]:
        given = getattr(request, budget.name)
        is_share = not isinstance(given, str) and given <= 1
        shares[budget.name] = float(given) if is_share else min(budget.target / max(budget.polynomial.total, 1), 1.0)
    return shares


def latency_share(graph: ChannelGraph, request: Request) -> float:
    """The requested time as a fraction of that which `fxprune.time_channels` measured; 1 if none is requested."""
    if isinstance(request.latency, str):
        assert graph.latency is not None
        return _seconds(request.latency) * FEMTOSECONDS / max(graph.latency.total, 1)
    return float(request.latency or 1.0)


def flops_target(graph: ChannelGraph, request: Request) -> int:
    """The most FLOPs that a budget allows: of the example as a whole, as `graph.flops` counts them.

    A count is for one sample. By default half of the FLOPs are allowed, or all if another budget is below the model's.

    Examples:
        >>> from fxprune import analyze, trace
        >>> from torch import nn, zeros
        >>> graph = analyze(trace(nn.Linear(4, 8), zeros(1, 4)))
        >>> [flops_target(graph, Request(flops)) for flops in (None, 0.75, 20)]
        [16, 24, 20]
        >>> flops_target(analyze(trace(nn.Linear(4, 8), zeros(3, 4))), Request(20))
        60
    """
    flops = request.flops
    if flops is None:
        others = {request.latency, request.params, request.memory}
        flops = 0.5 if others <= {None, 1} else 1.0
    return _count(flops, graph.flops.total, _samples_of(graph))


def _count(budget: float, total: int, samples: int = 1) -> int:
    """A budget as a number: a fraction of the total, or a count for each sample."""
    return math.floor(budget * total) if budget <= 1 else math.floor(budget * samples)


def _samples_of(graph: ChannelGraph) -> int:
    """The samples in the example: the first size of all its tensors; 1 where these differ or have one dimension."""
    given = (graph.labels[node.name] for node in graph.module.graph.nodes if node.op == "placeholder")
    sizes = {labels.shape[0] if len(labels.dims) > 1 else 1 for tree in given for labels in labels_in(tree)}
    return sizes.pop() if len(sizes) == 1 else 1


def parameters_of(graph: ChannelGraph) -> Polynomial:
    """The number of parameters as a polynomial in the kept channels and blocks."""
    terms = []
    for name, parameter in graph.module.named_parameters():
        blocks = tuple(block.channel for block in graph.blocks if name in block.tensors)
        terms += with_blocks([term(*graph.parameters.get(name, parameter.shape))], [blocks])
    return build_polynomial(terms, graph.num_channels)

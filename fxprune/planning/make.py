"""Scores + budget -> Plan."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph, Scores, size_of
from fxprune.errors import FxpruneError
from fxprune.planning.alignment import preferred_multiple
from fxprune.planning.budgets import Budget, flops_target, latency_budget
from fxprune.planning.plan import Plan, kept_indices
from fxprune.planning.selection import Units, choose, fewest, units_of

__all__ = ["make_plan"]


def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    *,
    flops: float | None = None,
    latency: float | None = None,
    round_to: int | Literal["auto"] = 1,
    ignore: str | Iterable[str] = (),
) -> Plan:
    """Choose the channels to keep: the lowest scores go until the budget is met, then what still fits comes back.

    Args:
        graph: the analysed model.
        scores: one number per channel, as from `fxprune.scores`.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs. Default: half of them, or
            where a latency is given, no limit.
        latency: a budget of time, as a fraction of the model's, predicted from what `fxprune.time_channels` measured.
        round_to: widths that are changed become multiples of this; "auto" for what the device of the weights computes
            without waste (`fxprune.planning.alignment`), or half of it, and so on, where the budget cannot be met so.
        ignore: names or glob patterns of modules to leave whole; a name covers all below it.

    Returns:
        A plan within every budget, and no less than 99.5 % of the tightest where channels are fine enough.

    Raises:
        FxpruneError: a budget is not a number, not positive, or cannot be reached; a pattern matches nothing.
    """
    total = graph.flops.total
    if not total:
        raise FxpruneError(
            "the model has no operation whose FLOPs are counted, such as a convolution or a linear layer: "
            "there is nothing to prune"
        )
    target = flops_target(graph, flops, latency)
    budgets = [Budget(graph.flops, target)]
    if latency is not None:
        budgets.append(latency_budget(graph, latency))
    multiples = _multiples(graph, round_to)
    ignored = _ignored_channels(graph, [ignore] if isinstance(ignore, str) else list(ignore))
    groups = [group for group in graph.groups if not ignored[group.channels].any()]
    willing = [group for group in groups if not group.last_resort]
    alive = None
    for chosen, multiple in itertools.product((willing, groups), multiples):
        units = units_of(chosen, scores, multiple)
        alive = choose(budgets, units) if alive is None else alive
    if alive is None:
        raise FxpruneError(_unreachable(graph, units, budgets, ignored))
    return Plan(kept_indices(graph, alive), graph.flops(alive), total, target, float(latency or 1.0))


def _multiples(graph: ChannelGraph, round_to: Any) -> list[int]:
    """The multiples to try, in order."""
    if round_to == "auto":
        multiple = preferred_multiple(graph.module)
        return [multiple >> k for k in range(multiple.bit_length())]
    if type(round_to) is not int or round_to < 1:
        raise FxpruneError(f"round_to (={round_to!r}) must be a whole number of at least 1, or 'auto'")
    return [round_to]


def _ignored_channels(graph: ChannelGraph, patterns: Sequence[str]) -> npt.NDArray[np.bool_]:
    ignored = np.zeros(graph.num_channels, dtype=bool)
    names = {name for name, _ in graph.module.named_modules() if name} | set(graph.parameters)
    for pattern in patterns:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f"; close names are {', '.join(close)}" if close else ""
            raise FxpruneError(f"ignore pattern {pattern!r} matches no module of the model{hint}")
        for name, dims in graph.parameters.items():
            path = name.split(".")
            if any(".".join(path[:k]) in hits for k in range(1, len(path) + 1)):
                for dim in dims:
                    if not isinstance(dim, int):
                        ignored[dim] = True
    return ignored


def _frozen_reasons(graph: ChannelGraph) -> list[tuple[str, int]]:
    """Why channels are frozen, and how many; first what the most weights belong to."""
    counts: Counter[str] = Counter()
    tensors: dict[str, set[str]] = {}
    for frozen in graph.frozen:
        counts[frozen.reason] += len(frozen)
        tensors.setdefault(frozen.reason, set()).update(dimension.parameter for dimension in frozen.dimensions)
    sizes = {name: math.prod(map(size_of, dims)) for name, dims in graph.parameters.items()}
    held = {reason: sum(sizes[name] for name in names) for reason, names in tensors.items()}
    return sorted(counts.items(), key=lambda item: held[item[0]], reverse=True)


def _unreachable(graph: ChannelGraph, units: Units, budgets: Sequence[Budget], ignored: npt.NDArray[np.bool_]) -> str:
    left = fewest(graph.flops, units)
    listed = [f"{count} channels: {reason}" for reason, count in _frozen_reasons(graph)[:5]]
    if ignored.any():
        listed.append(f"{int(ignored.sum())} channels: ignored")
    target, total = budgets[0].target, graph.flops.total
    what, raised = f"{target:,} FLOPs ({target / total:.1%})", "flops"
    lowest = f"{graph.flops(left):,} ({graph.flops(left) / total:.1%})"
    late = next((budget for budget in budgets[1:] if not budget.holds(left)), None)
    if late is not None:
        total = late.polynomial.total
        what, raised = f"{late.target / total:.1%} of the latency", "latency"
        lowest = f"predicted to be {late.polynomial(left) / total:.1%}"
    return (
        f"a budget of {what} cannot be reached: the lowest is {lowest} with one channel left in each group. "
        f"Frozen are {'; '.join(listed) or 'none'}. Raise {raised}, or ignore less."
        + (f" If {target} % was meant, give {target / 100:g}." if target <= 100 and late is None else "")
    )

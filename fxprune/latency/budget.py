"""Plans that keep a budget of time, as measured."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn

from fxprune.channels import ChannelGraph, Scores
from fxprune.errors import FxpruneWarning, UnreachableBudgetError
from fxprune.latency.measure import measure_latency
from fxprune.planning.budgets import Request
from fxprune.planning.make import plan_for
from fxprune.planning.plan import Plan
from fxprune.rewriting import rewrite
from fxprune.tracing.notes import example_of

__all__ = ["plan_for_latency"]

_ROUNDS = 6
# How far below the budget is near enough, what is aimed at, and the least part of a target that the next one is.
_NEAR, _AIM, _STEP = 0.97, 0.985, 0.7
# The interquartile range, as a part of the median, above which a measurement says little.
_UNSTEADY = 0.25


def plan_for_latency(graph: ChannelGraph, scores: Scores, model: nn.Module, request: Request) -> Plan:
    """Plan, measure beside the model, and plan again, until the measured time is just within the budget.

    Args:
        graph: what `fxprune.time_channels` returned.
        scores: as for `make_plan`.
        model: what the result is compared with.
        request: its latency is a fraction of the model's time, both measured in turn.

    Raises:
        UnreachableBudgetError: the budget cannot be reached, by prediction or as measured.

    Warns:
        FxpruneWarning: the times vary too much to tell.
    """
    assert request.latency is not None
    target = latency = request.latency
    best, lowest, unsteady = None, 1.0, 0.0
    measured: list[tuple[Plan, float]] = []
    within: float | None = None
    beyond: float | None = None
    for _ in range(_ROUNDS):
        try:
            plan = plan_for(graph, scores, replace(request, latency=target))
        except UnreachableBudgetError:
            # Asked for less than there is, because the machine takes longer than predicted.
            if not measured:
                raise
            break
        share = next((known for other, known in measured if other == plan), None)
        if share is None:
            whole, small = measure_latency([model, rewrite(graph, plan)], example_of(graph.module))
            share = small.seconds / whole.seconds
            unsteady = max(unsteady, whole.spread / whole.seconds, small.spread / small.seconds)
        elif share <= latency:
            # It is another budget that binds.
            break
        measured.append((plan, share))
        lowest = min(lowest, share)
        if share <= latency:
            # Each such target is higher than the one before.
            best, within = plan, target
        else:
            beyond = target
        if _NEAR * latency <= share <= latency:
            break
        # Time goes in steps of a few channels: between a target that was kept and one that was not, halving is safer.
        if within is not None and beyond is not None:
            target = (within + beyond) / 2
        else:
            target = _next_target(target, share, latency)
    if unsteady > _UNSTEADY:
        warnings.warn(
            f"the latency was measured with an interquartile range of {unsteady:.0%} of it: another process takes the "
            "processor, or there are more threads than free cores (torch.set_num_threads); measure it again",
            FxpruneWarning,
            stacklevel=4,
        )
    if best is None:
        raise UnreachableBudgetError(
            f"a latency of {latency:.1%} of the model's cannot be reached: the lowest that was measured is "
            f"{lowest:.1%}. Raise latency, ignore less, or measure on a machine that does nothing else"
        )
    return replace(best, latency_target=float(latency))


def _next_target(target: float, share: float, latency: float) -> float:
    """What to ask for next, if the time saved is so many times what is predicted to be, here and there."""
    lowest = _STEP * target
    return lowest if share >= 1 else max(lowest, 1 - (1 - target) * (1 - _AIM * latency) / (1 - share))

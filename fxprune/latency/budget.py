"""Plans that keep a budget of time, as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from fxprune.channels import Block, ChannelGraph, Scores
from fxprune.errors import UnreachableBudgetError, warn
from fxprune.latency.measure import measure_latency
from fxprune.planning.budgets import FEMTOSECONDS, Request, latency_share
from fxprune.planning.make import plan_for
from fxprune.planning.plan import Plan
from fxprune.rewriting import rewrite
from fxprune.tracing.notes import example_of

__all__ = ["plan_for_latency"]

# The most measurements. Not tuned, like the numbers below.
_ROUNDS = 6
# A measured time is near enough above this fraction of the budget; the next plan aims at this fraction; and it asks for
# at least this fraction of what the last one asked for.
_NEAR, _AIM, _STEP = 0.97, 0.985, 0.7
# If the interquartile range is a larger fraction of the median, the measurement tells little.
_UNSTEADY = 0.25


def plan_for_latency(
    graph: ChannelGraph, scores: Scores, model: nn.Module, request: Request, without: Sequence[Block] = ()
) -> Plan:
    """Plan, measure and plan again, until the measured time is just within the budget.

    Args:
        graph: what `fxprune.time_channels` returned.
        scores: as for `make_plan`.
        model: what the result is compared with.
        request: its latency. Of a fraction of the model's time, both are measured in turns.
        without: the blocks that are left out.

    Raises:
        UnreachableBudgetError: the budget cannot be reached, by prediction or as measured.

    Warns:
        FxpruneWarning: the times vary too much to tell.
    """
    assert request.latency is not None
    assert graph.latency is not None
    latency = latency_share(graph, request)
    whole = graph.latency.total / FEMTOSECONDS if isinstance(request.latency, str) else None
    meter, asked, target = _Meter(graph, model, whole), request, min(latency, 1.0)
    best, within, beyond = None, None, None
    for _ in range(_ROUNDS):
        try:
            plan = plan_for(graph, scores, asked, without)
        except UnreachableBudgetError:
            # The machine takes longer than predicted, so that the target has fallen below what is possible.
            if not meter.measured:
                raise
            break
        known = meter.known(plan)
        if known is not None and known <= latency:
            # Another budget is the limit.
            break
        share = meter.measure(plan) if known is None else known
        if share <= latency:
            # Each such target is higher than the one before.
            best, within = plan, target
        else:
            beyond = target
        if _NEAR * latency <= share <= latency:
            break
        # Time falls in steps of a few channels: between a target that was kept and one that was not, halving is safer.
        halfway = None if within is None or beyond is None else (within + beyond) / 2
        target = _next_target(target, share, latency) if halfway is None else halfway
        asked = replace(request, latency=target)
    if meter.unsteady > _UNSTEADY:
        warn(
            f"the latency was measured with an interquartile range of {meter.unsteady:.0%} of it: another process uses "
            "the processor, or there are more threads than free cores (torch.set_num_threads); measure it again"
        )
    if best is None:
        lowest = min(share for _, share in meter.measured)
        time = f"{request.latency}, {latency:.1%} of the model's," if whole else f"{latency:.1%} of the model's"
        raise UnreachableBudgetError(
            f"a latency of {time} cannot be reached: the lowest that was measured is "
            f"{lowest:.1%}. Raise latency, ignore less, or measure on a machine that does nothing else"
        )
    return replace(best, latency_target=min(latency, 1.0))


class _Meter:
    """Measures plans against the model.

    Attributes:
        measured: plans, and their times as fractions of the model's, or of the seconds that are given for it.
        unsteady: the largest interquartile range, as a fraction of the median.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module, seconds: float | None) -> None:
        self._graph, self._model, self._seconds = graph, model, seconds
        self.measured: list[tuple[Plan, float]] = []
        self.unsteady = 0.0

    def known(self, plan: Plan) -> float | None:
        """The time of a plan, if it was measured before."""
        return next((share for other, share in self.measured if other == plan), None)

    def measure(self, plan: Plan) -> float:
        """The time of a plan, as a fraction of the model's."""
        example = example_of(self._graph.module)
        whole, small = measure_latency([self._model, rewrite(self._graph, plan)], example)
        self.unsteady = max(self.unsteady, whole.spread / whole.seconds, small.spread / small.seconds)
        share = small.seconds / (self._seconds or whole.seconds)
        self.measured.append((plan, share))
        return share


def _next_target(target: float, share: float, latency: float) -> float:
    """The next target, if the ratio of saved to predicted time is the same there as at `target`."""
    lowest = _STEP * target
    return lowest if share >= 1 else max(lowest, 1 - (1 - target) * (1 - _AIM * latency) / (1 - share))

"""Plans that keep a budget of memory, as measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from fxprune.channels import ChannelGraph
from fxprune.errors import UnreachableBudgetError
from fxprune.planning.budgets import Request, budgets_of
from fxprune.planning.plan import Plan
from fxprune.rewriting import rewrite
from fxprune.running.copies import copy_module
from fxprune.running.peak import peak_activations
from fxprune.tracing.notes import call_of

__all__ = ["plan_for_memory"]

# The most plans that are tried. Not tuned.
_ROUNDS = 5


def plan_for_memory(graph: ChannelGraph, request: Request, make: Callable[[Request], Plan]) -> Plan:
    """Plan, count what the result allocates and plan again for less, until the budget of memory is kept.

    What the graph predicts is exact as long as no op allocates anything for itself, as products of attention do, and
    none is written for the smaller model that allocates more, as a LayerNorm is whose channels go.

    Args:
        graph: the analysed model.
        request: its memory is the budget; a fraction is of what the model allocates, as counted.
        make: a plan for a request.

    Raises:
        UnreachableBudgetError: the budget cannot be reached, by prediction or as counted.
    """
    assert request.memory is not None
    target = next(budget.target for budget in budgets_of(graph, request) if budget.name == "memory")
    whole = copy_module(graph.module)
    most = peak_activations(whole, *call_of(whole))
    limit = math.floor(request.memory * most) if request.memory <= 1 else target
    share, peaks, asked = target / max(graph.memory.total, 1), list[int](), request
    while len(peaks) < _ROUNDS:
        try:
            plan = make(asked)
        except UnreachableBudgetError:
            if not peaks:
                raise
            break
        pruned = rewrite(graph, plan)
        peaks.append(peak_activations(pruned, *call_of(pruned)))
        if peaks[-1] <= limit:
            return replace(plan, memory_target=min(request.memory if request.memory <= 1 else limit / most, 1.0))
        share *= limit / peaks[-1]
        asked = replace(request, memory=share)
    raise UnreachableBudgetError(
        f"a budget of {limit:,} bytes of activations at a time cannot be reached: the lowest that was counted "
        f"is {min(peaks):,}, of {most:,} in the model. Raise memory, or ignore less"
    )

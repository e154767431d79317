"""Depth and width in one plan: which blocks are left out, so that less has to be cut from the channels.

Blocks are coarse, and what they cost does not add up. So it is measured: blocks go one after the other, each time that
which costs the outputs least for what it saves. For each number of blocks that may go in this order, a plan cuts the
channels that are left to the budget, the result is compensated, and samples that were held out say which is best.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import fx

from fxprune.channels import Block, ChannelGraph
from fxprune.compensation.compensate import Compensation, Fit
from fxprune.data import Batch, run_model
from fxprune.errors import CannotScoreError, UnreachableBudgetError
from fxprune.layers.contraction import find_parameter
from fxprune.losses import distillation_loss
from fxprune.planning.budgets import Budget
from fxprune.planning.plan import Plan
from fxprune.progress import Progress
from fxprune.rewriting import rewrite
from fxprune.running.copies import copy_module
from fxprune.running.eval_mode import in_eval

__all__ = ["best_depth", "blocks_in_order"]

# How many samples say which block goes next, and how many numbers of blocks in a row that are worse than the best so far
# end the search. Not tuned.
_SAMPLES, _PATIENCE = 32, 2


def best_depth(
    graph: ChannelGraph,
    blocks: Sequence[Block],
    plan_without: Callable[[Sequence[Block]], Plan],
    run: Compensation,
) -> Fit:
    """The best of the plans that leave out the first of some blocks, fitted.

    Args:
        graph: the analysed model.
        blocks: in the order in which they go.
        plan_without: makes the plan with these blocks left out.
        run: fits pruned models, and says what their errors on held-out samples are.
    """
    best: Fit | None = None
    worse = 0
    for count in range(len(blocks) + 1):
        try:
            plan = plan_without(blocks[:count])
        except UnreachableBudgetError:
            continue
        fit = run.fit(rewrite(graph, plan))
        if best is None or fit.error < best.error:
            best, worse = fit, 0
        else:
            worse += 1
        if worse == _PATIENCE:
            break
    if best is None:
        plan_without(blocks)
        raise AssertionError("some plan was within the budget")
    return best


def blocks_in_order(
    graph: ChannelGraph, blocks: Collection[Block], budgets: Sequence[Budget], samples: Batch, progress: Progress
) -> list[Block]:
    """Blocks in the order in which they go, until a budget is met by that alone.

    Args:
        graph: the analysed model.
        blocks: those that may go.
        budgets: of the plan; the first says what a block saves.
        samples: the loss of the outputs on some of these says what a block costs.
        progress: is called with the number of blocks that are gone.
    """
    losses = _Losses(graph, samples)
    price = budgets[-1].polynomial
    alive = torch.ones(graph.num_channels, dtype=torch.bool).numpy()
    order: list[Block] = []
    queue = [(-math.inf, number, -1) for number in range(len(blocks))]
    candidates, loss = list(blocks), 0.0
    while queue and not all(budget.holds(alive) for budget in budgets):
        cost, number, measured = heapq.heappop(queue)
        block = candidates[number]
        alive[block.channel] = False
        if measured == len(order):
            order.append(block)
            loss = losses.without(order)
            progress("blocks", len(order), len(candidates), {})
            continue
        saved = price(alive)
        alive[block.channel] = True
        saved = price(alive) - saved
        if saved > 0:
            heapq.heappush(queue, ((losses.without([*order, block]) - loss) / saved, number, len(order)))
    return order


class _Losses:
    """What the outputs lose when blocks are left out: the parameters at their ends are set to zero meanwhile."""

    def __init__(self, graph: ChannelGraph, samples: Batch) -> None:
        step = max(samples.size // _SAMPLES, 1)
        self._batches = samples.take(torch.arange(0, samples.size, step)).split()
        self._model = copy_module(graph.module)
        self._wanted = [self._outputs(batch) for batch in self._batches]

    def _outputs(self, batch: Batch) -> object:
        with torch.no_grad(), in_eval(self._model):
            return run_model(self._model, batch, CannotScoreError)

    def without(self, blocks: Collection[Block]) -> float:
        """The loss without some blocks, per sample."""
        tensors = [find_parameter(self._model, name) for block in blocks for name in block.ends]
        saved = [tensor.detach().clone() for tensor in tensors]
        total, count = 0.0, 0
        with torch.no_grad():
            for tensor in tensors:
                tensor.zero_()
            for batch, wanted in zip(self._batches, self._wanted, strict=True):
                loss = distillation_loss(self._outputs(batch), wanted, temperature=1.0)
                total, count = total + float(loss) * batch.size, count + batch.size
            for tensor, before in zip(tensors, saved, strict=True):
                tensor.copy_(before)
        return total / count

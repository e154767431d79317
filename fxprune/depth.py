"""Depth and width in one plan: which blocks are left out, so that less has to be cut from the channels.

Blocks are coarse, and what they cost does not add up. So it is measured: blocks go one after the other, each time that
which costs the outputs least for what it saves. For each number of blocks that may go in this order, a plan cuts the
channels that are left to the budget, the result is compensated, and samples that were held out say which is best.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from fxprune.channels import Block, ChannelGraph
from fxprune.compensation.compensate import Compensation, Fit
from fxprune.data import Batch
from fxprune.errors import UnreachableBudgetError
from fxprune.planning.budgets import Budget
from fxprune.planning.plan import Plan
from fxprune.progress import Progress
from fxprune.rewriting import rewrite
from fxprune.scoring.block_losses import BlockLosses

__all__ = ["best_depth", "blocks_in_order"]

# After so many numbers of blocks in a row that are worse than the best so far the search ends. Not tuned.
_PATIENCE = 2


def best_depth(
    graph: ChannelGraph, blocks: Iterable[Block], plan_without: Callable[[Sequence[Block]], Plan], run: Compensation
) -> Fit:
    """Of the plans that leave out the first of some blocks, that with the best outputs on held-out samples, fitted.

    If there are many samples, each plan is fitted to half of them; `Compensation.finish` takes all.

    Args:
        graph: the analysed model.
        blocks: in the order in which they go; no more are taken than are tried.
        plan_without: makes the plan with these blocks left out.
        run: fits pruned models.

    Raises:
        UnreachableBudgetError: no plan is within the budget.
    """
    ahead = iter(blocks)
    following = next(ahead, None)
    if following is None:
        return run.fit(rewrite(graph, plan_without(())))
    blocks = itertools.chain([following], ahead)
    best: Fit | None = None
    unreachable: UnreachableBudgetError | None = None
    worse = 0
    # Where the first corrections do not help, others seldom do: only the best is tried with them.
    first = replace(run.coarser(), parts=run.parts[:1])
    for gone in itertools.accumulate(blocks, lambda before, block: [*before, block], initial=list[Block]()):
        try:
            plan = plan_without(gone)
        except UnreachableBudgetError as error:
            unreachable = error
            continue
        fit = first.fit(rewrite(graph, plan))
        # Not a number is worse than any.
        if best is None or not best.error <= fit.error:
            best, worse = fit, 0
        else:
            worse += 1
        if worse == _PATIENCE:
            break
    if best is None:
        assert unreachable is not None
        raise unreachable
    others = run.parts[1:]
    return replace(run, parts=others).fit(best.pruned) if others and not best.parts else best


def blocks_in_order(
    graph: ChannelGraph, blocks: Sequence[Block], budgets: Sequence[Budget], samples: Batch, progress: Progress
) -> Iterator[Block]:
    """Blocks in the order in which they go, until that alone meets the budgets; each is found when it is asked for.

    The next is the one whose loss adds least to that of the outputs, for what it saves. What the last one adds is
    measured anew for those that come into question, since it grows as others go.

    Args:
        graph: the analysed model.
        blocks: those that may go.
        budgets: of the plan; the tightest says what a block saves, or the time if that was measured, as for channels.
        samples: some of these measure the loss.
        progress: is called with the number of blocks that are gone.
    """
    if not blocks:
        return
    tightest = max(budgets, key=lambda budget: budget.tightness).polynomial
    losses, price = BlockLosses(graph, samples), tightest if graph.latency is None else graph.latency
    alive = graph.all_but(())
    order: list[Block] = []
    loss = 0.0
    # What a block costs for what it saves, its number, how many were gone when that was measured, and the loss then.
    queue = [(-math.inf, number, -1, 0.0) for number in range(len(blocks))]
    while queue and not all(budget.holds(alive) for budget in budgets):
        cost, number, gone, after = heapq.heappop(queue)
        block = blocks[number]
        if cost == math.inf:
            # Without any that is left, outputs are no numbers.
            break
        if gone == len(order):
            alive[block.channels], loss = False, after
            order.append(block)
            progress("blocks", len(order), len(blocks), {})
            yield block
            continue
        saved = price(alive) - price(alive & graph.all_but([block]))
        # Inside a block that is gone, others save nothing.
        if saved > 0:
            after = losses.without([*order, block])
            cost = (after - loss) / saved if math.isfinite(after) else math.inf
            heapq.heappush(queue, (cost, number, len(order), after))

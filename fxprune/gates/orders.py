"""The orders of channels and blocks that gates may start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch
from fxprune.progress import silent
from fxprune.scoring.block_losses import BlockLosses
from fxprune.scoring.criteria import FROM_DATA, scores

__all__ = ["PART", "orders_of", "with_blocks"]

# A criterion that reads data scores on parts of so many samples. Not tuned.
PART = 512
# The criteria whose unit is twice the loss, per cost.
_OF_LOSS = ("surgeon", "fisher")


def orders_of(
    graph: ChannelGraph, start: str | Callable[[ChannelGraph], Scores], samples: Batch, seed: int
) -> list[Scores]:
    """The scores of a criterion; of one that reads data, those on each part of the samples, and their mean."""
    if start not in FROM_DATA:
        return [scores(graph, start, seed=seed, progress=silent)]
    parts = [part for part in samples.split(PART) if part.size == PART] or [samples]
    found = [scores(graph, start, data=part, seed=seed, progress=silent) for part in parts]
    return found if len(found) == 1 else [*found, np.mean(found, axis=0)]


def with_blocks(graph: ChannelGraph, orders: Sequence[Scores], start: object, samples: Batch) -> list[Scores]:
    """The same orders with blocks among the channels, by what each costs alone; and the last with no block to go.

    What a block costs is measured: the loss of the outputs without it, for what it saves. A criterion in another unit
    orders channels alone; there the blocks are spread evenly among them.

    Args:
        graph: the analysed model.
        orders: scores of the channels.
        start: the criterion.
        samples: some of these measure the loss.
    """
    blocks = [block.channel for block in graph.blocks]
    costs = _costs(graph, samples)
    ranks = costs.argsort(kind="stable").argsort(kind="stable")
    channels = np.concatenate([group.channels for group in graph.groups] or [np.arange(graph.num_channels)])
    made = []
    for order in orders:
        made.append(order.copy())
        own = costs if start in _OF_LOSS else np.quantile(order[channels], (ranks + 0.5) / len(ranks))
        made[-1][blocks] = own
    last = orders[-1].copy()
    last[blocks] = np.inf
    return [*made, last]


def _costs(graph: ChannelGraph, samples: Batch) -> npt.NDArray[np.float64]:
    """Twice the loss without each block, over what that saves, as `fxprune.scoring.sensitivity.per_cost` counts it."""
    losses, price = BlockLosses(graph, samples), graph.price
    unit = np.maximum(price.marginal(graph.all_but(())), 1.0).mean()
    saved = [max(price.total - price(graph.all_but([block])), 1) for block in graph.blocks]
    lost = np.array([losses.without([block]) for block in graph.blocks])
    costs: npt.NDArray[np.float64] = np.nan_to_num(2 * lost * unit / np.array(saved), nan=np.inf, posinf=np.inf)
    return costs

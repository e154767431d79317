"""Plans like another one: all whose widths differ from its own by a few units, and the best use of a budget among them.

Where units are coarse, one at a time cannot come back and two cannot change places, but three or five at once may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fxprune.channels import Ids
from fxprune.channels.polynomial import Polynomial

__all__ = ["best_nearby"]

# How many plans are tried, more where their cost has few terms; how many at a time, and how often around the best of
# them. Not tuned: 20 million terms take a second.
_MOST_PLANS, _MOST_TERMS, _AT_A_TIME, _MOST_ROUNDS = (20_000, 400_000), 20_000_000, 2_000, 3


def best_nearby(
    polynomial: Polynomial, queues: Sequence[Sequence[Ids]], alive: npt.NDArray[np.bool_], least: float, target: int
) -> npt.NDArray[np.bool_]:
    """The plan that is most like a given one and costs at least `least`, or else the one that costs most.

    Args:
        polynomial: the cost.
        queues: for each group its units, as channels, in the order in which they go.
        alive: the channels that the given plan keeps; its cost is at most `target`. Of each group, the first units are
            those that are gone.
        least: what a plan should cost.
        target: what it may cost.
    """
    for _ in range(_MOST_ROUNDS):
        before = polynomial(alive)
        if before >= least:
            break
        alive = _best_around(polynomial, queues, alive, least, target)
        if polynomial(alive) == before:
            break
    return alive


def _best_around(
    polynomial: Polynomial, queues: Sequence[Sequence[Ids]], alive: npt.NDArray[np.bool_], least: float, target: int
) -> npt.NDArray[np.bool_]:
    gone = [sum(not alive[unit].any() for unit in queue) for queue in queues]
    fewest, most = _MOST_PLANS
    plans_tried = min(max(_MOST_TERMS // len(polynomial.products), fewest), most)
    ranges = _ranges(gone, [len(queue) for queue in queues], plans_tried)
    base = polynomial.sizes(alive)
    # What each number of units that are gone adds to the sizes, which are linear in them.
    changes = [
        np.stack([polynomial.sizes(_with_gone(alive, queue, count)) - base for count in counts])
        for queue, counts in zip(queues, ranges, strict=True)
    ]
    plans = np.stack(np.meshgrid(*(np.arange(len(counts)) for counts in ranges), indexing="ij"), -1)
    plans = plans.reshape(-1, len(queues))
    costs = np.concatenate(
        [
            polynomial.sums(base + sum(change[part[:, q]] for q, change in enumerate(changes))).max(axis=-1)
            for part in np.split(plans, range(_AT_A_TIME, len(plans), _AT_A_TIME))
        ]
    )
    starts = np.array([counts.start for counts in ranges])
    moved = np.abs(plans + starts - gone).sum(axis=1)
    enough = (costs >= least) & (costs <= target)
    # By the last key first.
    order = np.lexsort((-costs, moved) if enough.any() else (moved, -costs))
    fits = enough if enough.any() else costs <= target
    chosen = plans[order[fits[order]][0]] + starts
    for queue, count in zip(queues, chosen, strict=True):
        alive = _with_gone(alive, queue, int(count))
    return alive


def _with_gone(alive: npt.NDArray[np.bool_], queue: Sequence[Ids], count: int) -> npt.NDArray[np.bool_]:
    """The plan with as many of the first units of one group gone."""
    changed: npt.NDArray[np.bool_] = alive.copy()
    for k, unit in enumerate(queue):
        changed[unit] = k >= count
    return changed


def _ranges(gone: Sequence[int], sizes: Sequence[int], most: int) -> list[range]:
    """For each group, how many units may be gone: around what is gone now, as far as there are at most `most` plans."""
    ranges, grown = [range(count, count + 1) for count in gone], True
    while grown:
        grown = False
        for q, size in enumerate(sizes):
            for wider in (
                range(max(ranges[q].start - 1, 0), ranges[q].stop),
                range(ranges[q].start, min(ranges[q].stop + 1, size + 1)),
            ):
                others = math.prod(len(counts) for k, counts in enumerate(ranges) if k != q)
                if len(wider) > len(ranges[q]) and others * len(wider) <= most:
                    ranges[q], grown = wider, True
    return ranges

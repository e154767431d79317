"""Which of several sets of gates leaves most of the model, on samples that compensation was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.compensation.compensate import compensate
from fxprune.compensation.holdout import output_error, split_apart
from fxprune.data import Batch
from fxprune.planning.plan import Plan, kept_indices
from fxprune.rewriting import rewrite

__all__ = ["least_lossy"]

_JUDGING = 0.75
_CHUNK = 64


def least_lossy(
    graph: ChannelGraph, candidates: Sequence[npt.NDArray[np.bool_]], samples: Batch, *, repaired: bool, seed: int = 0
) -> int:
    """The number of the candidate whose outputs are nearest to the model's; of equals the last.

    Args:
        graph: the analysed model.
        candidates: for each, the channels that are kept (number of channels,).
        samples: a quarter of them repairs, the others judge.
        repaired: whether each is compensated before it is judged.
        seed: of the split and of compensation.
    """
    fit, judge = split_apart(graph.module, samples, _JUDGING, seed)
    if judge is None:
        return len(candidates) - 1
    errors = []
    for alive in candidates:
        flops = graph.flops(alive)
        pruned = rewrite(graph, Plan(kept_indices(graph, alive), flops, graph.flops.total, flops))
        pruned = compensate(graph, pruned, fit, seed=seed) if repaired else pruned
        errors.append(output_error(graph.module, pruned, judge.split(_CHUNK)))
    # What is no number is the last choice.
    return min(reversed(range(len(errors))), key=lambda number: np.nan_to_num(errors[number], nan=np.inf))

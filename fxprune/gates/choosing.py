"""Which of several sets of gates loses least, on samples that compensation was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph
from fxprune.compensation.compensate import compensate
from fxprune.compensation.holdout import OutputError, split_apart
from fxprune.data import Batch
from fxprune.planning.plan import plan_keeping
from fxprune.progress import silent
from fxprune.rewriting import rewrite

__all__ = ["least_lossy"]

# Not tuned.
_PART_THAT_JUDGES = 0.75
_CHUNK = 64


def least_lossy(
    graph: ChannelGraph,
    candidates: Sequence[npt.NDArray[np.bool_]],
    samples: Batch,
    *,
    compensated: bool,
    seed: int = 0,
) -> int:
    """The number of the candidate whose outputs are nearest to the model's; the last, where several are or none is.

    Args:
        graph: the analysed model.
        candidates: for each, which channels are kept (number of channels,).
        samples: a quarter of them is for compensation, the others judge.
        compensated: whether each candidate is compensated before it is judged.
        seed: of the split and of compensation.
    """
    fit, judges = split_apart(graph.module, samples, _PART_THAT_JUDGES, seed)
    if judges is None:
        return len(candidates) - 1
    error, errors = OutputError(graph.module, judges.split(_CHUNK)), []
    for alive in candidates:
        pruned = rewrite(graph, plan_keeping(graph, alive))
        pruned = compensate(graph, pruned, fit, seed=seed, progress=silent) if compensated else pruned
        errors.append(error(pruned))
    # NaN is the worst.
    return min(reversed(range(len(errors))), key=lambda number: np.nan_to_num(errors[number], nan=np.inf))

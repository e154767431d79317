"""Pass: pruned model + samples -> the pruned model with weights that make up for the channels that are gone.

The original and the pruned model run side by side on the samples. The pruned one is corrected on the way, so that each
layer is fitted to the inputs that it will really have. There are two corrections:

- *Ridge*, at each convolution and linear layer: weight reconstruction (`fxprune.compensation.reconstruction`). At the
  end of a residual branch the target includes what the other side of the sum lacks by then.
- *Moments*, at each BatchNorm: recalibration (`fxprune.compensation.recalibration`). A BatchNorm after a layer that
  makes up for another side is left alone: its outputs are meant to differ from the original's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace

from torch import fx, nn

from fxprune.channels import ChannelGraph
from fxprune.compensation.correction import Correction
from fxprune.compensation.holdout import output_error, split_apart
from fxprune.data import Data, calibration_batch
from fxprune.errors import FxpruneError, called_as
from fxprune.progress import Progress, shown
from fxprune.rewriting import (
    alive_channels,
    check_order,
    original_graph,
    plan_from,
    pruning_notes,
    set_pruning_notes,
)
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.devices import check_values

__all__ = ["compensate"]


_CALL = "fxprune.compensate(original, pruned, data)"


@called_as(_CALL)
@keep_freed_memory()
def compensate(
    original: nn.Module | ChannelGraph,
    pruned: fx.GraphModule,
    data: Data,
    *,
    ridge: bool = True,
    moments: bool = True,
    holdout: float = 0.25,
    damping: float | Sequence[float] = (1e-2, 1e-1, 1.0, 4.0),
    positions: int = 32768,
    seed: int = 0,
    progress: bool | Progress = False,
) -> fx.GraphModule:
    """Change the weights of a pruned model so that it does what the original does on samples.

    The default of `damping` was chosen by tests/benchmarks/photographs.py; the other numbers are not tuned.

    Args:
        original: the model that was pruned, or its `ChannelGraph`; not changed.
        pruned: what `fxprune.prune` or `fxprune.rewrite` made of it; not changed.
        data: see `fxprune.data`; all samples are used at once, and labels are ignored. About a hundred suffice.
        ridge: whether to fit weights to the original's outputs.
        moments: whether to match BatchNorm statistics to the original's.
        holdout: the fraction of the samples that judges each step; samples that the model answers alike are held out
            together. The steps that are kept are then fitted to all samples. With 0 all steps are kept.
        damping: of the ridge, relative to the mean square of the inputs; the held-out samples choose one of several.
        positions: about how many positions (in all samples, and in space) a layer is fitted to.
        seed: of the split and the positions.
        progress: show bars in a terminal, or call this function with the number of nodes done.

    Returns:
        A new model with the same graph and shapes; `fxprune.rewriting.pruning_notes` names the corrections that were
        kept.

    Raises:
        CannotScoreError: the model does not run on the samples.
        FxpruneError: an argument is out of range, or the models are in the wrong order.
    """
    if not 0 <= holdout < 1:
        raise FxpruneError(f"holdout (={holdout}) must be a fraction of the samples: at least 0 and below 1")
    strengths = sorted(damping) if isinstance(damping, Sequence) else [damping]
    if not strengths or min(strengths) <= 0:
        raise FxpruneError(f"damping (={damping!r}) must be positive")
    model = original.module if isinstance(original, ChannelGraph) else original
    check_order(_CALL, model, pruned)
    check_values("compensate", model, pruned)
    samples = calibration_batch(data, sys.maxsize, model)
    graph = original if isinstance(original, ChannelGraph) else original_graph(original, pruned, samples.example)
    fit, judge = ([] if side is None else side.split() for side in split_apart(graph.module, samples, holdout, seed))
    alive = alive_channels(graph, plan_from(graph.module, pruned))
    best, kept = copy.deepcopy(pruned), tuple[str, ...]()
    with shown(progress) as show:
        correction = Correction(graph, alive, positions, seed, show)
        least = output_error(graph.module, best, judge)
        # If both together help, neither is tried alone.
        for parts in [] if alive.all() else _trials(ridge, moments):
            fitted = copy.deepcopy(pruned)
            chosen = correction.apply(fitted, parts, fit, judge, lambda node: strengths)
            if judge and not output_error(graph.module, fitted, judge) < least:
                continue
            if judge:
                # The held-out samples have decided; now the model is fitted to them as well.
                fitted = copy.deepcopy(pruned)
                correction.apply(fitted, parts, [*fit, *judge], [], chosen.__getitem__)
            best, kept = fitted, parts
            break
    notes = pruning_notes(best)
    set_pruning_notes(best, replace(notes, compensated=tuple(dict.fromkeys((*notes.compensated, *kept)))))
    return best


def _trials(ridge: bool, moments: bool) -> list[tuple[str, ...]]:
    """The corrections to try, in this order: all together, then each alone."""
    if ridge and moments:
        return [("ridge", "moments"), ("moments",), ("ridge",)]
    return [("ridge",)] if ridge else [("moments",)] if moments else []

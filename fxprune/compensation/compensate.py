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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from fxprune.channels import ChannelGraph
from fxprune.compensation.correction import Correction
from fxprune.compensation.holdout import OutputError, split_apart
from fxprune.data import Batch, Data, calibration_batch
from fxprune.errors import FxpruneError, called_as
from fxprune.progress import Progress, shown
from fxprune.provenance import check_order, plan_from, pruning_notes, set_pruning_notes
from fxprune.rewriting import alive_channels, original_graph
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.devices import check_values

__all__ = ["ALL_PARTS", "HOLDOUT", "Compensation", "Fit", "compensate"]


_CALL = "fxprune.compensate(original, pruned, data)"
#: Chosen on photographs, by hand.
DAMPING = (1e-2, 1e-1, 1.0, 4.0)
#: Not tuned.
HOLDOUT, POSITIONS = 0.25, 32768
# From so many samples to fit to, half of them compare pruned models. Not tuned.
_MANY = 64
#: All corrections together, then each alone.
ALL_PARTS = (("ridge", "moments"), ("moments",), ("ridge",))


@called_as(_CALL)
@keep_freed_memory()
def compensate(
    original: nn.Module | ChannelGraph,
    pruned: fx.GraphModule,
    data: Data,
    *,
    ridge: bool = True,
    moments: bool = True,
    holdout: float = HOLDOUT,
    damping: float | Sequence[float] = DAMPING,
    positions: int = POSITIONS,
    seed: int = 0,
    progress: bool | Progress = False,
) -> fx.GraphModule:
    """Change the weights of a pruned model so that it does what the original does on samples.

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
        A new model with the same graph and shapes; `fxprune.provenance.pruning_notes` names the corrections that were
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
    with shown(progress) as show:
        run = Compensation.of(
            graph, samples, holdout, seed, show, parts=_trials(ridge, moments), damping=strengths, positions=positions
        )
        return run.finish(run.fit(pruned))


@dataclass(frozen=True, eq=False)
class Fit:
    """A pruned model with the corrections that the held-out samples approve of.

    Attributes:
        pruned: before it was corrected.
        fitted: after, on the samples that are not held out.
        parts: the corrections that were kept.
        damping: what each layer chose, by node name.
        error: of the outputs on the held-out samples.
    """

    pruned: fx.GraphModule
    fitted: fx.GraphModule
    parts: tuple[str, ...]
    damping: Mapping[str, Sequence[float]]
    error: float


@dataclass(frozen=True, eq=False)
class Compensation:
    """How pruned models of one original are compensated: `fit` several, compare their errors, and `finish` the best.

    Attributes:
        graph: the original.
        samples: to fit to, and those held out to judge by.
        error: of a pruned model on those held out; where there are none, on those that it is fitted to.
        parts: the corrections to try, together or alone, in this order.
        damping, positions, seed: as for `compensate`.
        progress: is called with the number of nodes done.
    """

    graph: ChannelGraph
    samples: tuple[Sequence[Batch], Sequence[Batch]]
    error: OutputError
    parts: Sequence[tuple[str, ...]]
    damping: Sequence[float]
    positions: int
    seed: int
    progress: Progress

    @staticmethod
    def of(
        graph: ChannelGraph,
        samples: Batch,
        holdout: float,
        seed: int,
        progress: Progress,
        *,
        parts: Sequence[tuple[str, ...]] = ALL_PARTS,
        damping: Sequence[float] = DAMPING,
        positions: int = POSITIONS,
    ) -> Compensation:
        """One that splits these samples, as `compensate` does."""
        fit, judge = (
            [] if part is None else part.split() for part in split_apart(graph.module, samples, holdout, seed)
        )
        return Compensation(
            graph, (fit, judge), OutputError(graph.module, judge or fit), parts, damping, positions, seed, progress
        )

    def coarser(self) -> Compensation:
        """The same, fitted to half of the samples if there are many, to compare pruned models."""
        fit, judge = self.samples
        if sum(batch.size for batch in fit) < _MANY:
            return self
        random = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(batch.size, generator=random)[: (batch.size + 1) // 2] for batch in fit]
        return replace(self, samples=([batch.take(order) for batch, order in zip(fit, orders, strict=True)], judge))

    @keep_freed_memory()
    def fit(self, pruned: fx.GraphModule) -> Fit:
        """Correct a copy of a pruned model, as far as that helps on the held-out samples."""
        (fit, judge), correction = self.samples, self._correction(pruned)
        least = self.error(pruned)
        # If both together help, neither is tried alone.
        for parts in [] if correction.alive.all() else self.parts:
            fitted = copy.deepcopy(pruned)
            chosen = correction.apply(fitted, parts, fit, judge, lambda node: self.damping)
            error = self.error(fitted)
            if not judge or error < least:
                return Fit(pruned, fitted, parts, chosen, error)
        return Fit(pruned, pruned, (), {}, least)

    @keep_freed_memory()
    def finish(self, done: Fit) -> fx.GraphModule:
        """The pruned model, corrected on all samples: those held out have decided."""
        (fit, judge), best = self.samples, copy.deepcopy(done.fitted)
        if judge and done.parts:
            best = copy.deepcopy(done.pruned)
            self._correction(best).apply(best, done.parts, [*fit, *judge], [], done.damping.__getitem__)
        notes = pruning_notes(best)
        kept = tuple(dict.fromkeys((*notes.compensated, *done.parts)))
        set_pruning_notes(best, replace(notes, compensated=kept))
        return best

    def _correction(self, pruned: fx.GraphModule) -> Correction:
        alive = alive_channels(self.graph, plan_from(self.graph.module, pruned))
        return Correction(self.graph, alive, self.positions, self.seed, self.progress)


def _trials(ridge: bool, moments: bool) -> list[tuple[str, ...]]:
    """The corrections to try, in this order."""
    wanted = {"ridge": ridge, "moments": moments}
    return [parts for parts in ALL_PARTS if all(wanted[part] for part in parts)]

"""Samples held out, so that they can judge what was fitted to the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.data import BATCH_DIM, Batch, run_model
from fxprune.errors import CannotScoreError
from fxprune.losses import distillation_loss, float_outputs, separated
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.eval_mode import in_eval

__all__ = ["OutputError", "clusters_of", "split_apart"]

# About how many entries of an output are compared to find samples that are alike. Not tuned.
_ENTRIES = 4096


def split_apart(model: fx.GraphModule, samples: Batch, part: float, seed: int) -> tuple[Batch, Batch | None]:
    """Samples to fit to, and a fraction of all samples to judge by; None if that is less than one sample.

    Samples that the model answers alike (frames of a film, crops of a photograph) are on the same side. Judged by what
    is nearly the same as what it was fitted to, any fit looks good.

    Raises:
        CannotScoreError: the model does not run on the samples.
    """
    held = min(round(part * samples.size), samples.size - 1)
    if not held:
        return samples, None
    clusters = clusters_of(model, samples)
    count = max(samples.size, int(clusters.max()) + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    judging = torch.cat([(clusters == number).nonzero().flatten() for number in order])[:held]
    judges = torch.zeros(samples.size, dtype=torch.bool)
    judges[judging] = True
    return samples.take((~judges).nonzero().flatten()), samples.take(judges.nonzero().flatten())


@keep_freed_memory()
def clusters_of(model: fx.GraphModule, samples: Batch) -> Tensor:
    """The number of each sample's cluster (samples,): that of the batch if it has any, else by the model's outputs.

    Each sample is in one cluster with the sample whose outputs are most like its own.

    Raises:
        CannotScoreError: the model does not run on the samples.
    """
    if samples.clusters is not None:
        return samples.clusters
    clusters = torch.arange(samples.size)
    for sample, nearest in enumerate(_likeness(model, samples).fill_diagonal_(-math.inf).argmax(1).tolist()):
        clusters[clusters == clusters[nearest]] = clusters[sample]
    return clusters


class OutputError:
    """How far the outputs of pruned models are from the original's on some samples; the original runs once.

    Args:
        original: the model that was pruned.
        batches: the samples.
    """

    def __init__(self, original: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self._original, self._batches = original, batches
        self._wanted: list[Any] = []

    def __call__(self, pruned: fx.GraphModule) -> float:
        """The distillation loss between the outputs of both, per sample.

        Raises:
            CannotScoreError: the original does not run on the samples.
            FxpruneError: only the pruned model does not.
        """
        total, count = 0.0, 0
        with torch.no_grad(), in_eval(self._original, pruned):
            if not self._wanted:
                self._wanted = [
                    separated(self._original, run_model(self._original, batch, CannotScoreError))
                    for batch in self._batches
                ]
            for batch, wanted in zip(self._batches, self._wanted, strict=True):
                outputs = separated(self._original, run_model(pruned, batch))
                total += float(distillation_loss(outputs, wanted, temperature=1.0)) * batch.size
                count += batch.size
        return total / max(count, 1)


def _likeness(model: fx.GraphModule, samples: Batch) -> Tensor:
    """How alike the outputs for each two samples are: the cosine of their differences from the mean output."""
    outputs = []
    with torch.no_grad(), in_eval(model):
        for batch in samples.split():
            rows = [torch.zeros(batch.size, 1)]
            for output in float_outputs(run_model(model, batch, CannotScoreError)):
                if output.dim() and output.shape[BATCH_DIM] == batch.size:
                    entries = output.reshape(batch.size, -1)
                    rows.append(entries[:, :: entries.shape[1] // _ENTRIES + 1].float().cpu())
            outputs.append(torch.cat(rows, 1))
    if len({rows.shape[1] for rows in outputs}) > 1:
        raise CannotScoreError("the sizes of the model's outputs depend on the values of the samples")
    differences = torch.cat(outputs).nan_to_num()
    directions = nn.functional.normalize(differences - differences.mean(0))
    return directions @ directions.T

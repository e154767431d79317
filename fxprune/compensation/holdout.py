"""Samples held out: the two sides are apart, so that one can judge what was fitted to the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fxprune.data import Batch, run_model
from fxprune.losses import distillation_loss, float_outputs
from fxprune.running.eval_mode import in_eval

__all__ = ["clusters_of", "output_error", "split_apart"]

_CHUNK = 16
# About how many entries of an output tell how alike samples are.
_ANSWER = 4096


def split_apart(model: fx.GraphModule, samples: Batch, part: float, seed: int) -> tuple[Batch, Batch | None]:
    """Samples to fit to, and a part of all samples to judge by; None where that part is less than a sample.

    Samples that the model answers alike (frames of a film, crops of a photograph) are on the same side: judged by what
    it was as good as fitted to, any fit is fine.
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


def clusters_of(model: fx.GraphModule, samples: Batch) -> Tensor:
    """The number of each sample's cluster (N,): that of the batch if it has any, else by the model's answers.

    Each sample is in one cluster with the sample whose answer is most like its own.
    """
    if samples.clusters is not None:
        return samples.clusters
    clusters = torch.arange(samples.size)
    for sample, nearest in enumerate(_likeness(model, samples).fill_diagonal_(-math.inf).argmax(1).tolist()):
        clusters[clusters == clusters[nearest]] = clusters[sample]
    return clusters


def output_error(original: fx.GraphModule, pruned: fx.GraphModule, batches: Sequence[Batch]) -> float:
    """How far the outputs of both are from each other, per sample."""
    total, count = 0.0, 0
    for batch in batches:
        with torch.no_grad(), in_eval(original, pruned):
            loss = distillation_loss(run_model(pruned, batch), run_model(original, batch), temperature=1.0)
        total, count = total + float(loss) * batch.size, count + batch.size
    return total / max(count, 1)


def _likeness(model: fx.GraphModule, samples: Batch) -> Tensor:
    """How alike the model's answers to each two samples are: the cosine of their differences from the mean answer."""
    answers = []
    with torch.no_grad(), in_eval(model):
        for batch in samples.split(_CHUNK):
            answer = [torch.zeros(batch.size, 1)]
            for output in float_outputs(run_model(model, batch)):
                if output.shape[:1] == (batch.size,):
                    entries = output.reshape(batch.size, -1)
                    answer.append(entries[:, :: entries.shape[1] // _ANSWER + 1].float().cpu())
            answers.append(torch.cat(answer, 1))
    differences = torch.cat(answers).nan_to_num()
    directions = nn.functional.normalize(differences - differences.mean(0))
    return directions @ directions.T

"""BatchNorm recalibration: statistics that give the outputs of a BatchNorm the moments that they have in the original.

Re-estimation of the statistics, the usual recalibration, assumes that the samples look like the training data. Here
each channel gets the mean and the variance that the original has there on the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.layers.batch_norm import BatchNorm

__all__ = ["recalibrate"]

# The most by which a channel is scaled. Not tuned.
_MOST_GAIN = 4.0
# Moments are taken on at most about twice as many positions of a sample. 196 were no better, but slower.
_POSITIONS = 64


def recalibrate(
    norm: BatchNorm, original: BatchNorm, kept: Tensor, original_inputs: Sequence[Tensor], inputs: Sequence[Tensor]
) -> None:
    """Set the statistics of a BatchNorm so that its outputs have the original's mean and variance per channel.

    Args:
        norm: of the pruned model; changed.
        original: the same of the original. Its statistics count: weight reconstruction may have changed those of
            `norm` already.
        kept: which of the original's channels `norm` has.
        original_inputs: what `original` reads, (samples, channels, ...) for each batch.
        inputs: what `norm` reads.
    """
    mean, var = (moment[kept] for moment in _moments(original_inputs))
    new_mean, new_var = _moments(inputs)
    running_mean, running_var = original.running_mean.double()[kept], original.running_var.double()[kept]
    unmoved = torch.equal(norm.running_mean, running_mean.to(norm.running_mean))
    if _close(mean, new_mean, var) and _close(var, new_var, var) and unmoved:
        return
    # The outputs keep their mean if (mean - running_mean) / sqrt(running_var + eps) stays, and so for the variance.
    ratio = (new_var / var.clamp_min(1e-30)).clamp(_MOST_GAIN**-2, _MOST_GAIN**2)
    ratio = torch.where(var > 1e-12 * var.mean(), ratio, torch.ones_like(ratio))
    scaled = ((running_var + norm.eps) * ratio - norm.eps).clamp_min(0)
    gain = ((scaled + norm.eps) / (running_var + norm.eps)).sqrt()
    norm.running_mean.copy_(new_mean - (mean - running_mean) * gain)
    norm.running_var.copy_(scaled)


def _moments(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel (dimension 1) of batches, on a grid of positions."""
    flat = [x.flatten(2) if x.dim() > 2 else x.unsqueeze(2) for x in values]
    thinned = [x[:, :, :: max(x.shape[2] // _POSITIONS, 1)].transpose(0, 1).flatten(1) for x in flat]
    joined = torch.cat(thinned, dim=1)
    variance, mean = torch.var_mean(joined, dim=1, correction=0)
    return mean.double(), variance.double()


def _close(a: Tensor, b: Tensor, var: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-6 * (a.abs() + var.sqrt())).all())

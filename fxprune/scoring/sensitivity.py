"""Scores from data: how much the model's outputs depend on each channel."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batches, Data
from fxprune.errors import FxpruneError
from fxprune.progress import Progress, shown
from fxprune.scoring.gate_gradients import gate_gradients

__all__ = ["check_finite", "fisher_scores", "per_cost", "taylor_scores"]


def fisher_scores(
    graph: ChannelGraph,
    data: Data,
    *,
    flops_power: float = 0.0,
    probes: int = 1,
    seed: int = 0,
    progress: bool | Progress = False,
) -> Scores:
    """Second order: the mean square of each sample's gradient by the channel's gate.

    Half of it is what closing the gate adds to the loss, as long as few channels go. With labels it is the empirical
    Fisher information of the cross-entropy; without, that of the model's own predictions, whose expectation is the
    curvature of the KL divergence to the unpruned outputs.
    (Group Fisher pruning: Liu et al., ICML 2021.)

    Args:
        graph: the analysed model.
        data: see `fxprune.data`; labels may be missing.
        flops_power: scores are divided by this power of the FLOPs that a channel costs.
        probes: random directions per sample; only without labels.
        seed: of the directions.
        progress: show bars in a terminal, or call this function with the number of samples done.

    Returns:
        Float array with one entry per channel number, not negative.

    Raises:
        CannotScoreError: the model does not run on the data, or has no outputs to score by.
    """
    with shown(progress) as show:
        gradients = gate_gradients(graph, Batches(data, model=graph.module), probes=probes, seed=seed, progress=show)
        return per_cost(graph, _mean(graph, (each.square() for each in gradients)), flops_power)


def taylor_scores(
    graph: ChannelGraph, data: Data, *, flops_power: float = 0.0, seed: int = 0, progress: bool | Progress = False
) -> Scores:
    """First order: the size of the loss's gradient by the channel's gate; over samples, signs cancel.

    Without labels the loss is the cross-entropy with the model's own most likely class: that to its own soft outputs
    has no gradient at open gates. (Molchanov et al., CVPR 2019.)

    Args, Returns and Raises: as for `fisher_scores`.
    """
    with shown(progress) as show:
        gradients = gate_gradients(graph, Batches(data, model=graph.module), probes=0, seed=seed, progress=show)
        return per_cost(graph, np.abs(_mean(graph, gradients)), flops_power)


def check_finite(graph: ChannelGraph, scores: Scores, raises: type[FxpruneError]) -> None:
    """Check that the scores of channels that can be pruned are finite, else raise an error of this class."""
    prunable = np.concatenate([group.channels for group in graph.groups] or [np.empty(0, dtype=np.int64)])
    if not np.isfinite(scores[prunable]).all():
        raise raises("scores are not finite: check the weights and the scoring function for NaN and infinity")


def per_cost(graph: ChannelGraph, scores: Scores, power: float) -> Scores:
    """Scores over a power of the FLOPs, or the time, that each channel costs; the mean cost is 1."""
    if not power:
        return scores
    cost = np.maximum(graph.price.marginal(np.ones(graph.num_channels, dtype=bool)), 1.0)
    divided: Scores = scores / (cost / cost.mean()) ** power
    return divided


def _mean(graph: ChannelGraph, gradients: Iterable[Tensor]) -> Scores:
    """The mean over samples of (samples, channels)."""
    total, count = np.zeros(graph.num_channels), 0
    for each in gradients:
        total += each.sum(0).cpu().numpy()
        count += len(each)
    return total / count

"""Scores: how much each channel matters. The lowest go first, so scores of different groups must be comparable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels import ChannelGraph
from fxprune.errors import FxpruneError

__all__ = ["Scores", "magnitude_scores", "random_scores", "scores"]

Scores: TypeAlias = npt.NDArray[np.float64]


def scores(graph: ChannelGraph, method: str | Callable[[ChannelGraph], Scores] = "l2", *, seed: int = 0) -> Scores:
    """One score per channel of the graph.

    Args:
        graph: the analysed model.
        method: "l2" or "l1" (group magnitude), "random", or a function of the graph that returns the scores.
        seed: for "random".

    Returns:
        Float array with one entry per channel number; those of frozen channels are not used.

    Raises:
        FxpruneError: the method is unknown, or the scores are not one finite number per channel.
    """
    if callable(method):
        result = np.asarray(method(graph), dtype=np.float64)
    elif method in ("l1", "l2"):
        result = magnitude_scores(graph, 1 if method == "l1" else 2)
    elif method == "random":
        result = random_scores(graph, seed)
    else:
        raise FxpruneError(f"method (={method!r}) is not known: use 'l1', 'l2', 'random' or a function of the graph")
    if result.shape != (graph.num_channels,):
        raise FxpruneError(
            f"scores have shape {result.shape}, but the model has {graph.num_channels} channels: give one each"
        )
    prunable = np.concatenate([group.channels for group in graph.groups] or [np.empty(0, dtype=np.int64)])
    if not np.isfinite(result[prunable]).all():
        raise FxpruneError("scores are not finite: check the weights and the scoring function for NaN and infinity")
    return result


def magnitude_scores(graph: ChannelGraph, p: int = 2) -> Scores:
    """Group magnitude: the p-norm of a channel's slice in each weight, over the mean of that weight, averaged.

    The division makes a score of 1 the average channel of any layer, whatever the layer's width and scale.
    (Coupled magnitude as in Fang et al., "DepGraph", CVPR 2023, with normalisation by dimension.)
    """
    total = np.zeros(graph.num_channels)
    count = np.zeros(graph.num_channels)
    seen: set[int] = set()
    for name, tensor in graph.module.named_parameters():
        dims = graph.parameters.get(name)
        if dims is None or tensor.dim() < 2 or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        labelled = [d for d, dim in enumerate(dims) if not isinstance(dim, int)]
        for d, norms in zip(labelled, _norms(name, tensor.detach(), labelled, p), strict=True):
            channels = dims[d]
            np.add.at(total, channels, norms / max(float(norms.mean()), 1e-30))
            np.add.at(count, channels, 1.0)
    return total / np.maximum(count, 1.0)


def _norms(name: str, weight: torch.Tensor, dims: list[int], p: int) -> list[npt.NDArray[np.float64]]:
    """The p-norm of every slice of a weight along each of some dimensions."""
    others = [d for d in range(weight.dim()) if d not in dims]
    powers = weight.abs() if p == 1 else weight.square()
    table = powers.sum(others) if others else powers
    norms = []
    for k in range(len(dims)):
        rest = [j for j in range(len(dims)) if j != k]
        sums = (table.sum(rest) if rest else table).double().cpu().numpy()
        if not np.isfinite(sums).all():
            raise FxpruneError(f"weight {name} has NaN or infinite entries: it cannot be pruned before that is mended")
        norms.append(sums if p == 1 else np.sqrt(sums))
    return norms


def random_scores(graph: ChannelGraph, seed: int = 0) -> Scores:
    """Uniform random scores: the baseline that every criterion must beat."""
    return np.random.default_rng(seed).random(graph.num_channels)

"""Scores: how much each channel matters. The lowest go first, so scores of different groups must be comparable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.channels import ChannelGraph, Ids, Scores
from fxprune.errors import FxpruneError
from fxprune.progress import Progress, silent
from fxprune.running.allocator import keep_freed_memory
from fxprune.scoring.relevance import relevance_scores
from fxprune.scoring.sensitivity import fisher_scores, taylor_scores
from fxprune.scoring.surgeon import surgeon_scores

__all__ = [
    "FROM_DATA",
    "Scores",
    "batchnorm_scores",
    "check_method",
    "fpgm_scores",
    "magnitude_scores",
    "random_scores",
    "relevance_scores",
    "scores",
    "uniform_scores",
]
FROM_DATA = ("surgeon", "fisher", "taylor")


@keep_freed_memory()
def scores(
    graph: ChannelGraph,
    method: str | Callable[[ChannelGraph], Scores] = "relevance",
    *,
    data: Any = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """One score per channel of the graph.

    Args:
        graph: the analysed model.
        method: a function of the graph that returns the scores, or one of

            - "relevance": the share of the output's variance that passes through the channel, for the FLOPs it costs;
            - "l2", "l1": group magnitude;
            - "uniform": group magnitude, ranked, so that every group loses the same fraction;
            - "batchnorm": the scale of BatchNorm, group magnitude where there is none;
            - "fpgm": the distance to the other filters of the layer;
            - "random";
            - from data, "surgeon": what the loss gains once the layers that read the channel are refitted, per FLOP;
            - "fisher": the same without refitting, per FLOP;
            - "taylor": the first-order change of the loss.
        data: batches for the last three, all of them are read; see `fxprune.data`. Labels may be missing.
        seed: for "random" and what draws directions in place of labels.
        progress: is told of the samples read.

    Returns:
        Float array with one entry per channel number; those of frozen channels are not used.

    Raises:
        FxpruneError: the method is unknown or lacks its data, or the scores are not one finite number per channel.
    """
    check_method(method)
    if method in FROM_DATA and data is None:
        raise FxpruneError(f"method {method!r} scores channels on data: give data, a loader or a list of batches")
    found = method(graph) if callable(method) else _SCORERS[method](graph, data, seed, progress)
    result = np.asarray(found, dtype=np.float64)
    if result.shape != (graph.num_channels,):
        raise FxpruneError(
            f"scores have shape {result.shape}, but the model has {graph.num_channels} channels: give one each"
        )
    prunable = np.concatenate([group.channels for group in graph.groups] or [np.empty(0, dtype=np.int64)])
    if not np.isfinite(result[prunable]).all():
        raise FxpruneError("scores are not finite: check the weights and the scoring function for NaN and infinity")
    return result


def check_method(method: str | Callable[[ChannelGraph], Scores], more: tuple[str, ...] = ()) -> None:
    """Check that a method is a function, or one of the names known to `scores` or of `more`.

    Raises:
        FxpruneError: it is neither.
    """
    if not callable(method) and method not in (*_SCORERS, *more):
        names = ", ".join(map(repr, (*_SCORERS, *more)))
        raise FxpruneError(f"method (={method!r}) is not known: use one of {names} or a function of the graph")


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
    sizes = weight.abs()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    if not math.isfinite(largest):
        raise FxpruneError(f"weight {name} has NaN or infinite entries: it cannot be pruned before that is mended")
    # The square of a large number is no number.
    sizes = sizes / (largest or 1.0)
    powers = sizes if p == 1 else sizes.square()
    table = powers.sum(others) if others else powers
    norms = []
    for k in range(len(dims)):
        rest = [j for j in range(len(dims)) if j != k]
        sums = (table.sum(rest) if rest else table).double().cpu().numpy()
        norms.append(largest * (sums if p == 1 else np.sqrt(sums)))
    return norms


def uniform_scores(graph: ChannelGraph) -> Scores:
    """Group magnitude as a rank in (0, 1) within the group: every group loses the same fraction of its channels."""
    magnitude = magnitude_scores(graph)
    ranks = np.zeros(graph.num_channels)
    for group in graph.groups:
        order = np.argsort(magnitude[group.channels], kind="stable")
        ranks[group.channels[order]] = (np.arange(len(order)) + 0.5) / len(order)
    return ranks


def batchnorm_scores(graph: ChannelGraph) -> Scores:
    """|gamma| of the BatchNorms that a channel passes, over the layer's mean; group magnitude where there is none.

    (Network slimming: Liu et al., ICCV 2017; there it is trained with a penalty on gamma.)
    """
    layers: list[tuple[Ids, npt.NDArray[np.float64]]] = []
    for path, module in graph.module.named_modules():
        if isinstance(module, _BatchNorm) and isinstance(module.weight, torch.Tensor):
            dims = graph.parameters.get(f"{path}.weight")
            if dims is not None and not isinstance(dims[0], int):
                layers.append((dims[0], module.weight.detach().abs().double().cpu().numpy()))
    return _averaged(graph, layers)


def fpgm_scores(graph: ChannelGraph) -> Scores:
    """Sum of a filter's distances to the others of its layer, over the layer's mean; group magnitude without a layer.

    What is close to all others, near their geometric median, can be made up for by them.
    (He et al., "Filter pruning via geometric median", CVPR 2019.)
    """
    layers: list[tuple[Ids, npt.NDArray[np.float64]]] = []
    for name, tensor in graph.module.named_parameters():
        dims = graph.parameters.get(name)
        if dims is not None and tensor.dim() > 1 and not isinstance(dims[0], int):
            filters = tensor.detach()
            filters = (torch.view_as_real(filters) if filters.is_complex() else filters).flatten(1).float()
            filters = filters / filters.abs().amax().clamp_min(1e-30)
            layers.append((dims[0], torch.cdist(filters, filters).sum(1).double().cpu().numpy()))
    return _averaged(graph, layers)


def _averaged(graph: ChannelGraph, layers: list[tuple[Ids, npt.NDArray[np.float64]]]) -> Scores:
    """The mean over layers of a channel's value there, 1 being the mean of each; magnitude where a channel has none."""
    total, count = np.zeros(graph.num_channels), np.zeros(graph.num_channels)
    for channels, values in layers:
        np.add.at(total, channels, values / max(float(values.mean()), 1e-30))
        np.add.at(count, channels, 1.0)
    return np.where(count > 0, total / np.maximum(count, 1.0), magnitude_scores(graph))


def random_scores(graph: ChannelGraph, seed: int = 0) -> Scores:
    """Uniform random scores: the baseline that every criterion must beat."""
    return np.random.default_rng(seed).random(graph.num_channels)


_SCORERS: dict[str, Callable[[ChannelGraph, Any, int, Progress], Scores]] = {
    "relevance": lambda graph, data, seed, show: relevance_scores(graph),
    "l1": lambda graph, data, seed, show: magnitude_scores(graph, 1),
    "l2": lambda graph, data, seed, show: magnitude_scores(graph),
    "uniform": lambda graph, data, seed, show: uniform_scores(graph),
    "batchnorm": lambda graph, data, seed, show: batchnorm_scores(graph),
    "fpgm": lambda graph, data, seed, show: fpgm_scores(graph),
    "random": lambda graph, data, seed, show: random_scores(graph, seed),
    "surgeon": lambda graph, data, seed, show: surgeon_scores(graph, data, seed=seed, progress=show),
    "fisher": lambda graph, data, seed, show: fisher_scores(graph, data, flops_power=1.0, seed=seed, progress=show),
    "taylor": lambda graph, data, seed, show: taylor_scores(graph, data, seed=seed, progress=show),
}

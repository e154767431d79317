"""Scores: how much each channel matters. The lowest go first, so scores of different groups must be comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels import ChannelGraph, Ids, Scores
from fxprune.data import Data
from fxprune.errors import CannotScoreError, FxpruneError
from fxprune.layers.batch_norm import is_batch_norm
from fxprune.progress import Progress, shown
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.devices import check_values
from fxprune.scoring.relevance import relevance_scores
from fxprune.scoring.sensitivity import check_finite, fisher_scores, taylor_scores
from fxprune.scoring.surgeon import surgeon_scores

__all__ = [
    "FROM_DATA",
    "Method",
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

Method: TypeAlias = str | Callable[[ChannelGraph], Scores]
"""The name of a method, or a function of the graph that returns the scores."""

_Layer: TypeAlias = tuple[Ids, npt.NDArray[np.float64]]


@keep_freed_memory()
def scores(
    graph: ChannelGraph,
    method: Method = "relevance",
    *,
    data: Data | None = None,
    seed: int = 0,
    progress: bool | Progress = False,
) -> Scores:
    """One score per channel of the graph.

    Args:
        graph: the analysed model.
        method: a function of the graph that returns the scores, or one of

            - "relevance": the share of the output's variance that passes through the channel, per FLOP;
            - "l2", "l1": group magnitude;
            - "uniform": group magnitude as a rank, so that every group loses the same fraction;
            - "batchnorm": the scale of BatchNorm, group magnitude where there is none;
            - "fpgm": the distance to the other filters of the layer;
            - "random";
            - from data, "surgeon": what the loss gains once the layers that read the channel are refitted, per FLOP;
            - "fisher": the same without refitting;
            - "taylor": the first-order change of the loss.
        data: samples for the last three, which read all of it; see `fxprune.data`. Labels may be missing.
        seed: of "random", and of what "surgeon" and "fisher" draw.
        progress: show bars in a terminal, or call this function with the samples done.

    Returns:
        Float array with one entry per channel number; those of frozen channels are not used.

    Raises:
        CannotScoreError: the model cannot be scored on these samples.
        FxpruneError: the method is unknown or lacks its data, or the scores are not one finite number per channel.

    Examples:
        >>> import fxprune
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = fxprune.analyze(fxprune.trace(model, torch.zeros(1, 3)))
        >>> scores(graph, "l2").shape == (graph.num_channels,)
        True
    """
    check_method(method)
    if not callable(method) and method != "random":
        check_values(f"method {method!r}", graph.module)
    if callable(method):
        found = method(graph)
    elif method in _FROM_WEIGHTS:
        found = _FROM_WEIGHTS[method](graph, seed)
    elif data is None:
        raise FxpruneError(f"method {method!r} scores channels on data: give data, a loader or a list of batches")
    else:
        with shown(progress) as show:
            found = _FROM_DATA[method](graph, data, seed, show)
    result = np.asarray(found, dtype=np.float64)
    if result.shape != (graph.num_channels,):
        raise FxpruneError(
            f"scores have shape {result.shape}, but the model has {graph.num_channels} channels: give one each"
        )
    check_finite(graph, result, CannotScoreError if method in FROM_DATA else FxpruneError)
    return result


def check_method(method: Method, more: tuple[str, ...] = ()) -> None:
    """Check that a method is a function, or one of the names known to `scores` or of `more`.

    Raises:
        FxpruneError: it is neither.
    """
    known = (*_FROM_WEIGHTS, *_FROM_DATA, *more)
    if not callable(method) and method not in known:
        names = ", ".join(map(repr, known))
        raise FxpruneError(f"method (={method!r}) is not known: use one of {names} or a function of the graph")


def magnitude_scores(graph: ChannelGraph, p: int = 2) -> Scores:
    """Group magnitude: the p-norm of a channel's slice in each weight, over the mean of that weight, averaged.

    The average channel of any layer has score 1, whatever the layer's width and scale.
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
        raise FxpruneError(f"weight {name} has NaN or infinite entries: repair it before you prune the model")
    # The square of a large number may be infinite.
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

    def scales() -> Iterator[_Layer]:
        for path, module in graph.module.named_modules():
            dims = graph.parameters.get(f"{path}.weight") if is_batch_norm(module) else None
            if dims is not None and not isinstance(dims[0], int):
                yield dims[0], module.get_parameter("weight").detach().abs().double().cpu().numpy()

    return _averaged(graph, scales())


def fpgm_scores(graph: ChannelGraph) -> Scores:
    """Sum of a filter's distances to the others of its layer, over the layer's mean; group magnitude without a layer.

    The others can make up for a filter that is close to all of them, near their geometric median.
    (He et al., "Filter pruning via geometric median", CVPR 2019.)
    """

    def distances() -> Iterator[_Layer]:
        for name, tensor in graph.module.named_parameters():
            dims = graph.parameters.get(name)
            if dims is not None and tensor.dim() > 1 and not isinstance(dims[0], int):
                filters = tensor.detach()
                filters = (torch.view_as_real(filters) if filters.is_complex() else filters).flatten(1).float()
                filters = filters / filters.abs().amax().clamp_min(1e-30)
                yield dims[0], torch.cdist(filters, filters).sum(1).double().cpu().numpy()

    return _averaged(graph, distances())


def _averaged(graph: ChannelGraph, layers: Iterator[_Layer]) -> Scores:
    """The mean over layers of a channel's value, in units of each layer's mean; magnitude where a channel has none."""
    total, count = np.zeros(graph.num_channels), np.zeros(graph.num_channels)
    for channels, values in layers:
        np.add.at(total, channels, values / max(float(values.mean()), 1e-30))
        np.add.at(count, channels, 1.0)
    return np.where(count > 0, total / np.maximum(count, 1.0), magnitude_scores(graph))


def random_scores(graph: ChannelGraph, seed: int = 0) -> Scores:
    """Uniform random scores: the baseline that every criterion must beat."""
    return np.random.default_rng(seed).random(graph.num_channels)


_FROM_WEIGHTS: dict[str, Callable[[ChannelGraph, int], Scores]] = {
    "relevance": lambda graph, seed: relevance_scores(graph),
    "l1": lambda graph, seed: magnitude_scores(graph, 1),
    "l2": lambda graph, seed: magnitude_scores(graph),
    "uniform": lambda graph, seed: uniform_scores(graph),
    "batchnorm": lambda graph, seed: batchnorm_scores(graph),
    "fpgm": lambda graph, seed: fpgm_scores(graph),
    "random": random_scores,
}

_FROM_DATA: dict[str, Callable[[ChannelGraph, Data, int, Progress], Scores]] = {
    "surgeon": lambda graph, data, seed, show: surgeon_scores(graph, data, seed=seed, progress=show),
    "fisher": lambda graph, data, seed, show: fisher_scores(graph, data, flops_power=1.0, seed=seed, progress=show),
    "taylor": lambda graph, data, seed, show: taylor_scores(graph, data, seed=seed, progress=show),
}

FROM_DATA = tuple(_FROM_DATA)
"""The methods that read data."""

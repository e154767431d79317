"""A score without data: how much of the output's variance passes through each channel, for the FLOPs that it costs.

The outputs have relevance 1 in all. Backwards through the graph, each layer shares the relevance of its outputs out
among its inputs, by the part of the output's energy that comes from each: `w[j, c] ** 2 * mean(a[c] ** 2)` from channel
`c` to output `j`. A residual connection and its branch share by energy too, so that channels in a branch that adds
little count little, whatever the size of their weights.

Propagating importance back from the output is the idea of Yu et al., "NISP", CVPR 2018.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Ids, Scores
from fxprune.ops import Trait, traits
from fxprune.scoring.channel_view import ChannelView
from fxprune.scoring.energies import activation_energies

__all__ = ["relevance_scores"]


def relevance_scores(graph: ChannelGraph) -> Scores:
    """The largest relevance that a channel has anywhere, over its cost, where 1 is the mean cost of all channels."""
    relevance = np.full(graph.num_channels, -1.0)
    if not graph.num_channels:
        return relevance
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        np.errstate(invalid="ignore"),
        warnings.catch_warnings(),
    ):
        # Ops warn of what samples of one pixel lack, as `std` over space does.
        warnings.simplefilter("ignore")
        for channels, values in _relevance_by_activation(graph):
            np.maximum.at(relevance, channels, values)
    # Channels of no activation that could be followed go last.
    relevance[relevance < 0] = relevance.max(initial=0.0)
    cost = graph.price.marginal(np.ones(graph.num_channels, dtype=bool))
    scores: Scores = relevance / np.maximum(cost / max(float(cost.mean()), 1e-30), 1e-9)
    return scores


def _relevance_by_activation(graph: ChannelGraph) -> Iterator[tuple[Ids, Scores]]:
    """The channels of every activation, and the relevance of each."""
    view = ChannelView(graph)
    energies = activation_energies(view)
    relevance: dict[fx.Node, Scores] = {}
    for node in reversed(graph.module.graph.nodes):
        sources = _activations(node)
        if node.op == "output":
            shares = {source: _evenly(view, 1.0 / len(sources), source) for source in sources}
        elif node in relevance:
            here = relevance.pop(node)
            if axis := view.axis(node):
                yield axis[1], here
            shares = _shares(view, energies, node, here, sources)
        else:
            continue
        for source, values in shares.items():
            relevance[source] = relevance[source] + values if source in relevance else values


def _activations(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads, except parameters and the model's input; for a tuple, what it was made from."""
    found: dict[fx.Node, None] = {}
    for source in node.all_input_nodes:
        if isinstance(source.meta["value"], (tuple, list)):
            found.update(dict.fromkeys(_activations(source)))
        elif source.op not in ("get_attr", "placeholder") and isinstance(source.meta["value"], Tensor):
            found[source] = None
    return list(found)


def _shares(
    view: ChannelView, energies: Mapping[fx.Node, Tensor], node: fx.Node, relevance: Scores, sources: list[fx.Node]
) -> dict[fx.Node, Scores]:
    """The relevance that each activation gets from an op that reads it."""
    found = view.squared_weight(node)
    if found is not None and found[0] in sources:
        source, square = found
        energy = energies.get(source, torch.ones(view.width(source)))
        return {source: _by_energy_of_inputs(relevance, square, energy)}
    carried = {source: _carried(view, relevance, node, source) for source in sources}
    if traits(node, view.module(node)) & (Trait.ADDITION | Trait.SUBTRACTION) and len(sources) > 1:
        return _by_energy_of_terms(carried, energies)
    # What arrives is as much as there is: factors of a product get equal parts.
    total = sum(float(values.sum()) for values in carried.values())
    scale = float(relevance.sum()) / max(total, 1e-30)
    return {source: values * scale for source, values in carried.items()}


def _by_energy_of_inputs(relevance: Scores, square: Tensor, energy: Tensor) -> Scores:
    """What a layer's inputs get of its outputs' relevance.

    Args:
        relevance: of the outputs (outputs,).
        square: the squared weight (conv groups, outputs of a conv group, inputs of a conv group).
        energy: mean squares of the inputs (inputs,).
    """
    energy = energy.to(square).view(len(square), 1, -1)
    outputs = square @ energy.transpose(1, 2)
    given = torch.from_numpy(relevance).to(square).view_as(outputs)
    taken = (given / outputs.clamp_min(1e-30)).transpose(1, 2) @ square * energy
    # Outputs that are zero, as those of a layer initialised to zero, take from all inputs alike.
    share = (given * (outputs <= 1e-30)).mean(1, keepdim=True) * square.shape[1] / square.shape[2]
    return (taken + share).flatten().double().cpu().numpy()


def _by_energy_of_terms(carried: dict[fx.Node, Scores], energies: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Scores]:
    """Terms of a sum share by energy; equally where that is not known."""
    sizes = {len(values) for values in carried.values()}
    if len(sizes) > 1 or not all(source in energies for source in carried):
        return {source: values / len(carried) for source, values in carried.items()}
    own = {source: energies[source].double().cpu().numpy() for source in carried}
    # In a branch that adds zero, channels still have an order.
    floor = 1e-3 * sum(own.values()) + 1e-30
    total = sum(own.values()) + len(own) * floor
    return {source: values * (own[source] + floor) / total for source, values in carried.items()}


def _carried(view: ChannelView, relevance: Scores, node: fx.Node, source: fx.Node) -> Scores:
    """The relevance of the channels that go through an op from `source`; spread evenly where none does."""
    axis, before = view.axis(node), view.axis(source)
    if axis is None or before is None:
        return _evenly(view, float(relevance.sum()), source)
    if axis[1] is before[1] or np.array_equal(axis[1], before[1]):
        return relevance
    channels, inverse, counts = np.unique(before[1], return_inverse=True, return_counts=True)
    at = np.minimum(np.searchsorted(channels, axis[1]), len(channels) - 1)
    same = channels[at] == axis[1]
    if not same.any():
        return _evenly(view, float(relevance.sum()), source)
    sums = np.bincount(at[same], relevance[same], len(channels))
    carried: Scores = (sums / counts)[inverse]
    return carried


def _evenly(view: ChannelView, total: float, node: fx.Node) -> Scores:
    """The same for every channel of an activation; a single number where it has none."""
    return np.full(view.width(node), total / view.width(node))

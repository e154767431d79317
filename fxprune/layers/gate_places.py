"""Where gates have to be, so that closing one removes its channel exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import fx

from fxprune.channels import ChannelGraph, Ids, Labels
from fxprune.layers.layer import layer_of

__all__ = ["GatePlace", "depends_on_input", "gate_places"]


@dataclass(frozen=True, eq=False)
class GatePlace:
    """Channels that enter a contraction.

    Attributes:
        node: the contraction.
        argument: the node whose value enters.
        dim: the dimension of it that is summed over.
        channels: channel number of each index of that dimension.
        from_input: whether the value depends on the model's input, not on weights alone.
    """

    node: str
    argument: str
    dim: int
    channels: Ids
    from_input: bool


def gate_places(graph: ChannelGraph) -> list[GatePlace]:
    """The fewest places where closed gates remove their channels exactly.

    An op that keeps channels apart, such as a depthwise convolution, needs no gate: the next one removes what it
    makes of the channel. Of two activations that meet in a product only one is gated: one that depends on the model's
    input, if there is one.
    """
    by_name = {node.name: node for node in graph.module.graph.nodes}
    from_input = depends_on_input(graph.module.graph)
    places: list[GatePlace] = []
    for name, summed in graph.contractions.items():
        here: list[GatePlace] = []
        for argument, d in sorted(summed, key=lambda entry: entry[0] not in from_input):
            labels = graph.labels[argument]
            if not isinstance(labels, Labels) or isinstance(channels := labels.dims[d], int):
                continue
            met = any(place.argument != argument and np.array_equal(place.channels, channels) for place in here)
            if not met and not _is_depthwise(graph, by_name[name], channels):
                here.append(GatePlace(name, argument, d, channels, argument in from_input))
        places += here
    return places


def depends_on_input(graph: fx.Graph) -> set[str]:
    """The names of the nodes that depend on the model's input."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def _is_depthwise(graph: ChannelGraph, node: fx.Node, entering: Ids) -> bool:
    """Whether a node is a convolution with one channel for each conv group, that of its inputs and its outputs."""
    layer, labels = layer_of(node, graph.module), graph.labels[node.name]
    if layer is None or layer.groups == 1 or not isinstance(labels, Labels):
        return False
    rank, groups = len(node.meta["value"].shape), layer.groups
    leaving = labels.dims[1 if rank == len(labels.dims) and rank > 1 else 0]
    if isinstance(leaving, int) or len(entering) % groups or len(leaving) % groups:
        return False
    first = entering.reshape(groups, -1)[:, :1]
    return bool((entering.reshape(groups, -1) == first).all() and (leaving.reshape(groups, -1) == first).all())

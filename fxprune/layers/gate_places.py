"""Where gates have to stand for closed ones to remove their channels exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import fx

from fxprune.channels import ChannelGraph, Ids, Labels

__all__ = ["CONVS", "GatePlace", "conv_groups", "depends_on_input", "gate_places"]

CONVS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True, eq=False)
class GatePlace:
    """Channels that enter a contraction.

    Attributes:
        node: the contraction.
        argument: the node whose value enters.
        dim: the dimension of it that is summed over.
        channels: channel number of each index of that dimension.
        from_input: whether the value depends on the model's input, and is not of weights alone.
    """

    node: str
    argument: str
    dim: int
    channels: Ids
    from_input: bool


def gate_places(graph: ChannelGraph) -> list[GatePlace]:
    """Where gates have to stand for closed ones to remove their channels exactly; no more than that.

    An op that hands each channel on by itself, such as a depthwise convolution, needs no gate: the next one makes it
    void. Of two activations that meet in a product one is gated, the one that depends on the model's input if not both.
    """
    by_name = {node.name: node for node in graph.module.graph.nodes}
    from_input = depends_on_input(graph.module.graph)
    places: list[GatePlace] = []
    for name, entering in graph.contractions.items():
        here: list[GatePlace] = []
        for argument, d in sorted(entering, key=lambda entry: entry[0] not in from_input):
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
    """Whether it is a convolution whose conv groups each have one channel, of which inputs and outputs are."""
    labels = graph.labels[node.name]
    groups = conv_groups(node, graph.module)
    if groups <= 1 or not isinstance(labels, Labels):
        return False
    rank = len(node.meta["value"].shape)
    leaving = labels.dims[1 if rank == len(labels.dims) and rank > 1 else 0]
    if isinstance(leaving, int) or len(entering) % groups or len(leaving) % groups:
        return False
    first = entering.reshape(groups, -1)[:, :1]
    return bool((entering.reshape(groups, -1) == first).all() and (leaving.reshape(groups, -1) == first).all())


def conv_groups(node: fx.Node, module: fx.GraphModule) -> int:
    """The number of conv groups of a convolution; 1 for anything else."""
    if node.op == "call_module":
        return int(getattr(module.get_submodule(str(node.target)), "groups", 1))
    if node.op == "call_function" and node.target in CONVS:
        given = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        return given if isinstance(given, int) else 1
    return 1

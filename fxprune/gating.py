"""Pass: put gates into a graph, and take them out."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph, Group, Ids, Labels
from fxprune.dagger import Dagger, gate
from fxprune.errors import FxpruneError

__all__ = ["gate_logits", "gated_groups", "insert_gates", "remove_gates"]

_ROOT = "dagger"


def insert_gates(graph: ChannelGraph, *, reluctant: bool = False) -> fx.GraphModule:
    """The model with a `dagger` node per group, fed by the group's own weights, and gates where channels are summed.

    Args:
        graph: the analysed model; neither it nor its module is changed.
        reluctant: whether groups that are pruned only in need get gates too.

    Returns:
        A GraphModule whose gates are all open: until they are trained it gives the model's outputs, bit for bit.
    """
    gated = copy.deepcopy(graph.module)
    groups = gated_groups(graph, reluctant)
    if not groups:
        raise FxpruneError("the model has no channels that can be pruned, so there is nothing to gate")
    position = np.full(graph.num_channels, sum(len(group) for group in groups), dtype=np.int64)
    daggers = nn.Module()
    gated.add_module(_ROOT, daggers)
    start = 0
    nodes = []
    by_name = {node.name: node for node in gated.graph.nodes}
    first = next(node for node in gated.graph.nodes if node.op != "placeholder")
    with gated.graph.inserting_before(first):
        for number, group in enumerate(groups):
            position[group.channels] = np.arange(start, start + len(group))
            start += len(group)
            name = f"{re.sub(r'[^0-9A-Za-z_]', '_', group.name)}_{number}"
            weights, module = _dagger_of(graph, group)
            daggers.add_module(name, module)
            read = [gated.graph.get_attr(weight) for weight in weights]
            nodes.append(gated.graph.call_module(f"{_ROOT}.{name}", tuple(read)))
        gates = gated.graph.call_function(_join, (nodes,))
    gates.name = "gates"
    for number, (node, argument, d, index) in enumerate(_places(graph, position, start)):
        place = f"place_{number}"
        daggers.register_buffer(place, torch.from_numpy(index), persistent=False)
        user, source = by_name[node], by_name[argument]
        rank = len(graph.labels[argument].dims)
        with gated.graph.inserting_before(user):
            where = gated.graph.get_attr(f"{_ROOT}.{place}")
            gated_input = gated.graph.call_function(gate, (source, gates, where, d - rank))
        user.replace_input_with(source, gated_input)
    gated.to(next(iter(graph.module.parameters())).device)
    gated.graph.lint()
    gated.recompile()
    return gated


def remove_gates(gated: fx.GraphModule) -> fx.GraphModule:
    """The model without its gates, exactly as before `insert_gates`; the gated one is not changed."""
    plain = copy.deepcopy(gated)
    for node in list(plain.graph.nodes):
        if node.op == "call_function" and node.target is gate:
            node.replace_all_uses_with(node.args[0])
    for node in reversed(list(plain.graph.nodes)):
        added = node.target in (gate, _join) or str(node.target).startswith(f"{_ROOT}.")
        weight = node.op == "get_attr" and not node.users
        if added or weight:
            plain.graph.erase_node(node)
    delattr(plain, _ROOT)
    plain.recompile()
    return plain


def gated_groups(graph: ChannelGraph, reluctant: bool = False) -> list[Group]:
    """The groups that get gates."""
    return [group for group in graph.groups if reluctant or not group.reluctant]


def gate_logits(gated: fx.GraphModule, graph: ChannelGraph, *, reluctant: bool = False) -> Tensor:
    """The logit of every channel's gate, differentiable; infinite where there is no gate.

    Returns:
        Shape (number of channels of the graph,); open gates are positive.
    """
    logits = torch.full((graph.num_channels,), torch.inf, device=next(gated.parameters()).device)
    modules = dict(gated.named_modules())
    nodes = [
        node for node in gated.graph.nodes if node.op == "call_module" and isinstance(modules[node.target], Dagger)
    ]
    for node, group in zip(nodes, gated_groups(graph, reluctant), strict=True):
        weights = [gated.get_parameter(str(argument.target)) for argument in node.args]
        values = modules[node.target].logits(*weights)
        logits = logits.index_copy(0, torch.from_numpy(group.channels).to(values.device), values)
    return logits


def _join(gates: list[Tensor]) -> Tensor:
    """All gates in one vector, with one more at the end that is always open."""
    return torch.cat([*gates, gates[0].new_ones(1)])


def _dagger_of(graph: ChannelGraph, group: Group) -> tuple[list[str], Dagger]:
    local = np.full(graph.num_channels, len(group), dtype=np.int64)
    local[group.channels] = np.arange(len(group))
    names: list[str] = []
    places: list[tuple[int, Tensor]] = []
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    for dimension in group.dimensions:
        ids = graph.parameters[dimension.parameter][dimension.dim]
        if dimension.parameter in parameters and not isinstance(ids, int):
            names.append(dimension.parameter)
            places.append((dimension.dim, torch.from_numpy(local[ids])))
    return names, Dagger(len(group), places)


def _places(graph: ChannelGraph, position: Ids, count: int) -> Iterator[tuple[str, str, int, Any]]:
    """Every argument that enters a contraction with gated channels: node, argument, dimension, places in the gates."""
    for node, entering in graph.contractions.items():
        for argument, d in entering:
            labels = graph.labels[argument]
            if isinstance(labels, Labels) and not isinstance(ids := labels.dims[d], int):
                index = position[ids]
                if (index < count).any():
                    yield node, argument, d, index

"""Pass: put gates into a graph, and take them out.

Where a channel enters a convolution or a linear layer, its gate multiplies the weight along its input dimension, which
does the same as multiplying the activation and costs next to nothing. So it does where the hidden channels of a
recurrent layer enter the layer itself, in the next step. Elsewhere (products of activations, normalisation over
channels, weights larger than what they are applied to) it multiplies the activation.
"""

from __future__ import annotations

import copy
import math
import operator
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph, Group, Ids
from fxprune.errors import FxpruneError
from fxprune.gates.dagger import Dagger, Description, Spread, gate
from fxprune.gates.weight_given import WEIGHT_GIVEN
from fxprune.layers.gate_places import depends_on_input, gate_places
from fxprune.layers.layer import Layer, layer_of
from fxprune.rules.recurrent import recurrent_weights
from fxprune.running.copies import named_tensors

__all__ = [
    "dagger_of",
    "descriptions",
    "gate_logits",
    "gated_groups",
    "insert_gates",
    "remove_gates",
]

_ROOT, _GATES, _SPREAD = "dagger", "gates", "spread"
# The batch, in examples, at which gating an activation is as dear as gating a weight of the example's size.
_BATCH = 64


def insert_gates(graph: ChannelGraph, *, last_resort: bool = False) -> fx.GraphModule:
    """The model with a `dagger` node per group, fed by the group's own weights, and gates where channels are summed.

    Args:
        graph: the analysed model; neither it nor its module is changed.
        last_resort: whether groups that are pruned only in need get gates too.

    Returns:
        A GraphModule whose gates are all open: until they are trained it gives the model's outputs, bit for bit.
    """
    gated = copy.deepcopy(graph.module)
    groups = gated_groups(graph, last_resort)
    if not groups:
        if graph.groups:
            raise FxpruneError(
                f"all channels of the model are pruned only in need ({graph.groups[0].last_resort}), so none is gated: "
                "give last_resort=True to gate them too"
            )
        raise FxpruneError("the model has no channels that can be pruned, so there is nothing to gate")
    position = np.full(graph.num_channels, sum(len(group) for group in groups), dtype=np.int64)
    daggers = nn.Module()
    gated.add_module(_ROOT, daggers)
    start = 0
    nodes, shapes = [], []
    by_name = {node.name: node for node in gated.graph.nodes}
    # What enters in two of its dimensions is gated twice.
    entering: dict[tuple[str, str], fx.Node] = {}
    from_input = depends_on_input(gated.graph)
    first = next(node for node in gated.graph.nodes if node.op != "placeholder")
    with gated.graph.inserting_before(first):
        for number, group in enumerate(groups):
            position[group.channels] = np.arange(start, start + len(group))
            start += len(group)
            name = f"{re.sub(r'[^0-9A-Za-z_]', '_', group.name)}_{number}"
            weights, module = _description_of(graph, group)
            daggers.add_module(name, module)
            shapes.append((len(group), len(weights)))
            read = [gated.graph.get_attr(weight) for weight in weights]
            nodes.append(gated.graph.call_module(f"{_ROOT}.{name}", tuple(read)))
        daggers.add_module(_GATES, Dagger(shapes))
        joined = gated.graph.call_module(f"{_ROOT}.{_GATES}", (nodes,))
        daggers.add_module(_SPREAD, Spread())
        gates = gated.graph.call_module(f"{_ROOT}.{_SPREAD}", (joined,))
    gates.name = "gates"
    for place in gate_places(graph):
        index = position[place.channels]
        if not (index < start).any():
            continue
        user = by_name[place.node]
        source = entering.get((place.node, place.argument), by_name[place.argument])
        shape = graph.labels_of(place.argument).shape
        layer = layer_of(user, gated)
        weight = None if layer is None else _gateable_weight(layer, source, from_input, _BATCH * math.prod(shape))
        by_conv_group = index.reshape(1 if layer is None else layer.groups, -1)
        if weight is not None and (by_conv_group == by_conv_group[0]).all():
            index = by_conv_group[0].copy()
        else:
            weight = None
        if weight is None:
            closed = _insert_gate(gated, user, source, gates, index, place.dim - len(shape))
            user.replace_input_with(source, closed)
            entering[place.node, place.argument] = closed
        elif isinstance(weight, fx.Node):
            closed = _insert_gate(gated, user, weight, gates, index, _input_dim(weight.meta["value"]))
            user.replace_input_with(weight, closed)
        else:
            _gate_own_weight(gated, user, "weight", gates, index)
    for user in [node for node in gated.graph.nodes if node.op == "call_module"]:
        for name in recurrent_weights(gated.get_submodule(str(user.target))):
            channels = graph.parameters[f"{user.target}.{name}"][1]
            if not isinstance(channels, int) and (position[channels] < start).any():
                _gate_own_weight(gated, user, name, gates, position[channels])
    gated.to(next(iter(graph.module.parameters())).device)
    gated.graph.lint()
    gated.recompile()
    return gated


def _insert_gate(gated: fx.GraphModule, user: fx.Node, value: Any, gates: fx.Node, index: Ids, dim: int) -> fx.Node:
    """A node that multiplies `value`, a node or the name of a parameter, by the gates of `index` along `dim`."""
    spread: Any = gated.get_submodule(f"{_ROOT}.{_SPREAD}")
    with gated.graph.inserting_before(user):
        here = gated.graph.call_function(operator.getitem, (gates, spread.add(torch.from_numpy(index))))
        node = gated.graph.get_attr(value) if isinstance(value, str) else value
        return gated.graph.call_function(gate, (node, here, dim))


def _gate_own_weight(gated: fx.GraphModule, user: fx.Node, name: str, gates: fx.Node, index: Ids) -> None:
    """Call a module with one of its own weights gated along its input dimension."""
    module = gated.get_submodule(str(user.target))
    dim = _input_dim(getattr(module, name))
    user.update_kwarg(name, _insert_gate(gated, user, f"{user.target}.{name}", gates, index, dim))
    module.__class__ = WEIGHT_GIVEN.get(type(module), type(module))


def _gateable_weight(layer: Layer, source: fx.Node, from_input: set[str], most: int) -> fx.Node | nn.Module | None:
    """The weight that an activation is multiplied by, if that can be gated and has at most so many entries.

    Returns:
        A node; or a module, whose parameter it is; or None.
    """
    if layer.module is not None:
        module: Any = layer.module
        plain = type(module) in (*WEIGHT_GIVEN, *WEIGHT_GIVEN.values())
        # What is no parameter may be computed anew in each call.
        return module if plain and "weight" in module._parameters and module.weight.numel() <= most else None
    weight = layer.weight
    if layer.transposed or weight is None or layer.input is not source or weight is source or weight.name in from_input:
        return None
    value = weight.meta["value"]
    return weight if value.dim() > 1 and value.numel() <= most else None


def _input_dim(weight: Tensor) -> int:
    return 1 - weight.dim()


def remove_gates(gated: fx.GraphModule) -> fx.GraphModule:
    """The model without its gates, exactly as before `insert_gates`; the gated one is not changed."""
    plain = copy.deepcopy(gated)
    modules = dict(plain.named_modules())
    classes = {given: own for own, given in WEIGHT_GIVEN.items()}
    for node in list(plain.graph.nodes):
        if node.op == "call_function" and node.target is gate:
            node.replace_all_uses_with(node.args[0])
        elif node.op == "call_module" and type(modules[str(node.target)]) in classes:
            node.kwargs = {name: value for name, value in node.kwargs.items() if "weight" not in name}
    for module in modules.values():
        module.__class__ = classes.get(type(module), type(module))
    for node in reversed(list(plain.graph.nodes)):
        added = node.target is gate or str(node.target).startswith(f"{_ROOT}.")
        weight = node.op == "get_attr" and not node.users
        of_spread = any(source.target == f"{_ROOT}.{_SPREAD}" for source in node.all_input_nodes)
        if added or weight or of_spread:
            plain.graph.erase_node(node)
    delattr(plain, _ROOT)
    plain.recompile()
    return plain


def gated_groups(graph: ChannelGraph, last_resort: bool = False) -> list[Group]:
    """The groups that get gates."""
    return [group for group in graph.groups if last_resort or not group.last_resort]


def gate_logits(gated: fx.GraphModule, graph: ChannelGraph, *, last_resort: bool = False) -> Tensor:
    """The logit of every channel's gate, differentiable; infinite where there is no gate.

    Returns:
        Shape (number of channels of the graph,); open gates are positive.
    """
    values = dagger_of(gated).logits([module(*weights) for module, weights in descriptions(gated)])
    channels = np.concatenate([group.channels for group in gated_groups(graph, last_resort)])
    logits = values.new_full((graph.num_channels,), torch.inf)
    return logits.index_copy(0, torch.from_numpy(channels).to(values.device), values)


def dagger_of(gated: fx.GraphModule) -> Dagger:
    """The Dagger module of a gated model."""
    module = gated.get_submodule(f"{_ROOT}.{_GATES}")
    assert isinstance(module, Dagger)
    return module


def descriptions(gated: fx.GraphModule) -> list[tuple[Description, list[Tensor]]]:
    """What describes the groups to the Dagger module, in their order, each with the weights that it reads."""
    modules = dict(gated.named_modules())
    tensors = named_tensors(gated)
    found: list[tuple[Description, list[Tensor]]] = []
    for node in gated.graph.nodes:
        if node.op == "call_module" and isinstance(module := modules[str(node.target)], Description):
            found.append((module, [tensors[str(argument.target)] for argument in node.args]))
    return found


def _description_of(graph: ChannelGraph, group: Group) -> tuple[list[str], Description]:
    local = np.full(graph.num_channels, len(group), dtype=np.int64)
    local[group.channels] = np.arange(len(group))
    names: list[str] = []
    places: list[tuple[int, Tensor]] = []
    learned = {name for name, _ in graph.module.named_parameters(remove_duplicate=False)}
    # A group of buffers alone, as between two fixed filter banks, is described by these.
    described = [d for d in group.dimensions if d.parameter in learned] or group.dimensions
    for dimension in described:
        ids = graph.parameters[dimension.parameter][dimension.dim]
        if not isinstance(ids, int):
            names.append(dimension.parameter)
            places.append((dimension.dim, torch.from_numpy(local[ids])))
    return names, Description(len(group), places)

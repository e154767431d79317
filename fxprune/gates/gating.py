"""Passes: insert gates into a graph, and remove them.

A gate multiplies what a channel adds where channels are summed over. In a convolution or a linear layer it multiplies
the weight along its input dimension, which gives the same as multiplying the activation and costs next to nothing. So
it does inside a recurrent layer, where hidden channels enter the next step. Elsewhere (products of activations,
normalisation over channels, weights larger than the activation) it multiplies the activation.

The gate of a block multiplies its value, where that is added to another one. Of a value that is concatenated, it
multiplies the gates of its channels wherever these are summed over: what comes in between need not map zero to zero.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import Block, ChannelGraph, Group, Ids
from fxprune.errors import FxpruneError
from fxprune.gates.dagger import BlockDescription, Dagger, Description
from fxprune.gates.weight_argument import WITH_WEIGHT_ARGUMENT
from fxprune.layers.gate_places import GatePlace, depends_on_input, gate_places
from fxprune.layers.layer import Layer, layer_of
from fxprune.rules.recurrent import recurrent_weights
from fxprune.running.copies import named_tensors

__all__ = ["Spread", "dagger_of", "descriptions", "gate", "gated_groups", "insert_gates", "remove_gates"]

_ROOT, _GATES, _SPREAD = "dagger", "gates", "spread"
_WITHOUT_WEIGHT_ARGUMENT = {with_argument: own for own, with_argument in WITH_WEIGHT_ARGUMENT.items()}
# A weight is gated if it has no more entries than the activation of so many examples. Not tuned.
_BATCH = 64


def insert_gates(graph: ChannelGraph, *, last_resort: bool = False, depth: bool = False) -> fx.GraphModule:
    """The model with a Dagger module that reads the groups' weights, and gates where channels are summed over.

    Args:
        graph: the analysed model; neither it nor its module is changed.
        last_resort: whether the groups that are pruned only as a last resort get gates too.
        depth: whether blocks get gates too, one each.

    Returns:
        A GraphModule whose gates are all open: until they are trained it gives the model's outputs, bit for bit.

    Raises:
        FxpruneError: there is no channel to gate.

    Examples:
        >>> import fxprune
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.ones(3, 4)
        >>> gated = insert_gates(fxprune.analyze(fxprune.trace(model, x)))
        >>> torch.equal(gated(x), model(x))
        True
    """
    groups, blocks = gated_groups(graph, last_resort), graph.blocks if depth else ()
    if not (groups or blocks) and graph.groups:
        raise FxpruneError(
            f"all channels of the model are pruned only as a last resort ({graph.groups[0].last_resort}), so none is "
            "gated: give last_resort=True to gate them too"
        )
    if not (groups or blocks):
        raise FxpruneError("the model has no channels that can be pruned, so there is nothing to gate")
    gated = copy.deepcopy(graph.module)
    gates = _insert_dagger(gated, graph, groups, blocks)
    _gate_sums(gates, blocks)
    _gate_contractions(gates, graph)
    _gate_within_recurrent_layers(gates, graph)
    gated.to(next(iter(graph.module.parameters())).device)
    gated.graph.lint()
    gated.recompile()
    return gated


def remove_gates(gated: fx.GraphModule) -> fx.GraphModule:
    """The model without its gates, exactly as before `insert_gates`; the gated one is not changed."""
    plain = copy.deepcopy(gated)
    modules = dict(plain.named_modules())
    for node in plain.graph.nodes:
        if node.op == "call_function" and node.target is gate:
            node.replace_all_uses_with(node.args[0])
        elif node.op == "call_module" and type(modules[str(node.target)]) in _WITHOUT_WEIGHT_ARGUMENT:
            node.kwargs = {name: value for name, value in node.kwargs.items() if "weight" not in name}
    for module in modules.values():
        module.__class__ = _WITHOUT_WEIGHT_ARGUMENT.get(type(module), type(module))
    for node in reversed(list(plain.graph.nodes)):
        added = node.target is gate or str(node.target).startswith(f"{_ROOT}.")
        unused_weight = node.op == "get_attr" and not node.users
        of_spread = any(source.target == f"{_ROOT}.{_SPREAD}" for source in node.all_input_nodes)
        if added or unused_weight or of_spread:
            plain.graph.erase_node(node)
    delattr(plain, _ROOT)
    plain.recompile()
    return plain


def gated_groups(graph: ChannelGraph, last_resort: bool = False) -> list[Group]:
    """The groups that get gates."""
    return [group for group in graph.groups if last_resort or not group.last_resort]


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


# --- what is put into the graph ---------------------------------------------------------------------------------------


def gate(x: Tensor, gates: Tensor, dim: int) -> Tensor:
    """`x` times the gates of its channels along one dimension.

    Args:
        x: any tensor.
        gates: one for each index of `dim`.
        dim: a negative dimension of `x`.

    Examples:
        >>> gate(torch.ones(2, 3), torch.tensor([1.0, 0.0, 1.0]), -1)
        tensor([[1., 0., 1.],
                [1., 0., 1.]])
    """
    return x * gates.to(x.dtype).reshape(-1, *(1,) * (-1 - dim))


class Spread(nn.Module):
    """The gates at each place of the graph, taken from those of all channels in one step.

    Args:
        factors: how many gates are multiplied at an index, at most.
    """

    def __init__(self, factors: int = 1) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", torch.empty(factors, 0, dtype=torch.long), persistent=False)
        self.sizes: list[int] = []

    def add(self, index: Tensor) -> int:
        """Add a place; returns its number.

        Args:
            index: the numbers of the gates at each of its indices (factors, indices).
        """
        self.index = torch.cat([self.index, index], dim=1)
        self.sizes.append(index.shape[1])
        return len(self.sizes) - 1

    def forward(self, gates: Tensor) -> tuple[Tensor, ...]:
        """The gates of each place, from all of them in a row."""
        first, *others = (gates.index_select(0, each) for each in self.index)
        for factor in others:
            first = first * factor
        return torch.split(first, self.sizes)


@dataclass(frozen=True, eq=False)
class _Gates:
    """The gates of a model, to be put in places of its graph.

    Attributes:
        gated: the model.
        node: gives the gates of each place.
        spread: the module that the node calls.
        number: the numbers of each channel's gate and those of the blocks that it goes with, in a row of `count`;
            `count` where there is none (factors, number of channels).
        count: how many gates there are.
    """

    gated: fx.GraphModule
    node: fx.Node
    spread: Spread
    number: Ids
    count: int

    def any_at(self, channels: Ids) -> bool:
        """Whether one of these channels has a gate."""
        return bool((self.number[:, channels] < self.count).any())

    def multiply(self, user: fx.Node, value: fx.Node, index: Ids, dim: int) -> fx.Node:
        """A node before `user`: a value times the gates of these numbers (factors, indices) along a dimension."""
        with self.gated.graph.inserting_before(user):
            place = self.spread.add(torch.from_numpy(index))
            here = self.gated.graph.call_function(operator.getitem, (self.node, place))
            return self.gated.graph.call_function(gate, (value, here, dim))

    def multiply_input(self, user: fx.Node, value: fx.Node, index: Ids, dim: int) -> fx.Node:
        """Let a node read a value times gates, in place of the value; returns what it reads now."""
        product = self.multiply(user, value, index, dim)
        user.replace_input_with(value, product)
        return product

    def multiply_own_weight(self, user: fx.Node, name: str, index: Ids) -> None:
        """Call a module with one of its own weights times gates along its input dimension."""
        module = self.gated.get_submodule(str(user.target))
        with self.gated.graph.inserting_before(user):
            weight = self.gated.graph.get_attr(f"{user.target}.{name}")
        user.update_kwarg(name, self.multiply(user, weight, index, _input_dim(getattr(module, name))))
        module.__class__ = WITH_WEIGHT_ARGUMENT.get(type(module), type(module))


def _input_dim(weight: Tensor) -> int:
    return 1 - weight.dim()


# --- the Dagger module ------------------------------------------------------------------------------------------------


def _insert_dagger(
    gated: fx.GraphModule, graph: ChannelGraph, groups: Sequence[Group], blocks: Sequence[Block]
) -> _Gates:
    """Add the Dagger module, one description per group before it, and what spreads its gates to their places."""
    number, count = _numbers(graph, groups, blocks)
    root, spread = nn.Module(), Spread(len(number))
    gated.add_module(_ROOT, root)
    parts = [(group.name, *_describe(graph, group)) for group in groups]
    if blocks:
        ends = [name for block in blocks for name in block.ends]
        parts.append(("blocks", ends, BlockDescription([len(block.ends) for block in blocks])))
    described, shapes = [], []
    first = next(node for node in gated.graph.nodes if node.op != "placeholder")
    with gated.graph.inserting_before(first):
        for position, (of, weights, description) in enumerate(parts):
            name = f"{re.sub(r'[^0-9A-Za-z_]', '_', of)}_{position}"
            root.add_module(name, description)
            shapes.append((description.features.shape[0], description.features.shape[1]))
            read = tuple(gated.graph.get_attr(weight) for weight in weights)
            described.append(gated.graph.call_module(f"{_ROOT}.{name}", read))
        root.add_module(_GATES, Dagger(shapes))
        root.add_module(_SPREAD, spread)
        joined = gated.graph.call_module(f"{_ROOT}.{_GATES}", (described,))
        node = gated.graph.call_module(f"{_ROOT}.{_SPREAD}", (joined,))
    node.name = "gates"
    return _Gates(gated, node, spread, number, count)


def _numbers(graph: ChannelGraph, groups: Sequence[Group], blocks: Sequence[Block]) -> tuple[Ids, int]:
    """The numbers of the gates of each channel, as in `_Gates`, and how many gates there are."""
    sizes = [*map(len, groups), len(blocks)]
    count = sum(sizes)
    rows = [np.full(graph.num_channels, count, dtype=np.int64)]
    for group, start in zip(groups, np.cumsum([0, *sizes]), strict=False):
        rows[0][group.channels] = start + np.arange(len(group))
    for k, block in enumerate(blocks, count - len(blocks)):
        rows[0][block.channel] = k
        # A channel may go with several blocks, one inside another.
        left = block.channels[block.channels != block.channel]
        for row in itertools.count(1):
            if not len(left):
                break
            if row == len(rows):
                rows.append(np.full(graph.num_channels, count, dtype=np.int64))
            free = rows[row][left] == count
            rows[row][left[free]], left = k, left[~free]
    return np.stack(rows), count


def _describe(graph: ChannelGraph, group: Group) -> tuple[list[str], Description]:
    """The names of the weights that describe a group, and the module that reads them."""
    within_group = np.full(graph.num_channels, len(group), dtype=np.int64)
    within_group[group.channels] = np.arange(len(group))
    learned = {name for name, _ in graph.module.named_parameters(remove_duplicate=False)}
    # A group that has only buffers, as between two fixed filter banks, is described by these.
    dimensions = [d for d in group.dimensions if d.parameter in learned] or group.dimensions
    names: list[str] = []
    places: list[tuple[int, Tensor]] = []
    for dimension in dimensions:
        ids = graph.parameters[dimension.parameter][dimension.dim]
        if not isinstance(ids, int):
            names.append(dimension.parameter)
            places.append((dimension.dim, torch.from_numpy(within_group[ids])))
    return names, Description(len(group), places)


# --- the places -------------------------------------------------------------------------------------------------------


def _gate_sums(gates: _Gates, blocks: Sequence[Block]) -> None:
    """Put gates on the values of blocks that are added to others."""
    by_name = {node.name: node for node in gates.gated.graph.nodes}
    for block in blocks:
        if block.stays:
            total, value = by_name[block.readers[0]], by_name[block.value]
            gates.multiply_input(total, value, gates.number[:, [block.channel]], -1)


def _gate_contractions(gates: _Gates, graph: ChannelGraph) -> None:
    """Put gates wherever channels enter a contraction."""
    by_name = {node.name: node for node in gates.gated.graph.nodes}
    from_input = depends_on_input(gates.gated.graph)
    # An activation that is summed over two of its dimensions is gated twice.
    gated_before: dict[tuple[str, str], fx.Node] = {}
    for place in gate_places(graph):
        if gates.any_at(place.channels):
            key = (place.node, place.argument)
            source = gated_before.get(key, by_name[place.argument])
            shape = graph.labels_of(place.argument).shape
            product = _gate_contraction(gates, place, by_name[place.node], source, shape, from_input)
            if product is not None:
                gated_before[key] = product


def _gate_contraction(
    gates: _Gates, place: GatePlace, user: fx.Node, source: fx.Node, shape: Sequence[int], from_input: set[str]
) -> fx.Node | None:
    """Gate the weight of a contraction, or else the activation; returns the node of a gated activation."""
    index = gates.number[:, place.channels]
    layer = layer_of(user, gates.gated)
    weight = None if layer is None else _gateable_weight(layer, source, from_input, _BATCH * math.prod(shape))
    by_conv_group = index.reshape(len(index), 1 if layer is None else layer.groups, -1)
    # The input dimension of a weight is that of each conv group.
    if weight is None or (by_conv_group != by_conv_group[:, :1]).any():
        return gates.multiply_input(user, source, index, place.dim - len(shape))
    index = by_conv_group[:, 0].copy()
    if isinstance(weight, fx.Node):
        gates.multiply_input(user, weight, index, _input_dim(weight.meta["value"]))
    else:
        gates.multiply_own_weight(user, "weight", index)
    return None


def _gateable_weight(layer: Layer, source: fx.Node, from_input: set[str], most: int) -> fx.Node | nn.Module | None:
    """The weight that an activation is multiplied by, if that can be gated and has at most so many entries.

    Returns:
        Its node; or the module whose parameter it is; or None.
    """
    if layer.module is not None:
        module = layer.module
        plain = type(module) in WITH_WEIGHT_ARGUMENT or type(module) in _WITHOUT_WEIGHT_ARGUMENT
        # A weight that is not a parameter may be computed anew in each call.
        own = module._parameters.get("weight")
        return module if plain and own is not None and own.numel() <= most else None
    weight = layer.weight
    if layer.transposed or weight is None or layer.input is not source or weight is source or weight.name in from_input:
        return None
    value = weight.meta["value"]
    return weight if value.dim() > 1 and value.numel() <= most else None


def _gate_within_recurrent_layers(gates: _Gates, graph: ChannelGraph) -> None:
    """Put gates on the weights of recurrent layers that hidden channels enter in the next step, or the next layer."""
    for user in [node for node in gates.gated.graph.nodes if node.op == "call_module"]:
        for name in recurrent_weights(gates.gated.get_submodule(str(user.target))):
            channels = graph.parameters[f"{user.target}.{name}"][1]
            if not isinstance(channels, int) and gates.any_at(channels):
                gates.multiply_own_weight(user, name, gates.number[:, channels])

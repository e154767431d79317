"""Pass: traced model -> ChannelGraph."""

from __future__ import annotations

import copy
import operator
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.channels import ChannelGraph, Dim, IdTable, Labels, Size, map_labels
from fxprune.channels.grouping import Resolved, collect
from fxprune.channels.polynomial import Term
from fxprune.errors import FxpruneError
from fxprune.flops import count_flops
from fxprune.rules import find_rule
from fxprune.rules.indexing import getitem
from fxprune.rules.probe import probe
from fxprune.rules.registry import Op, Parameters, Splits
from fxprune.rules.size import attribute, map_values, size
from fxprune.running import trees
from fxprune.tracing.aliasing import alias_roots, used_nodes
from fxprune.tracing.notes import trace_notes

__all__ = ["analyze"]

_SIZE_RULES = (attribute, getitem, size)
# Methods whose answer does not depend on the channels.
_HARMLESS = (
    *("dim", "ndimension", "element_size", "is_floating_point", "is_complex", "is_contiguous", "get_device", "type"),
)


def analyze(traced: fx.GraphModule) -> ChannelGraph:
    """Find which channels belong together and which cannot be pruned, and why.

    Args:
        traced: what `fxprune.trace` returns; it is not changed.

    Returns:
        The groups of channels, the frozen ones with their reasons, and the FLOPs as a polynomial.
    """
    # Ops are tried, and some of them draw.
    with torch.random.fork_rng(devices=[]):
        graph, stuck = _analyze(traced, Splits())
        if stuck:
            # Where the width of attention heads has to stay, whole heads may go.
            other, _ = _analyze(traced, Splits(avoided=stuck))
            if _prunable_indices(other) > _prunable_indices(graph):
                return other
    return graph


def _analyze(traced: fx.GraphModule, splits: Splits) -> tuple[ChannelGraph, frozenset[Any]]:
    """The channels, and the splits that gave nothing: those where all channels of the factor taken are frozen."""
    ids = IdTable()
    parameters = Parameters(traced, ids)
    modules = dict(traced.named_modules())
    # What is computed from the entries of the model's input, not from its size.
    input_dependent: set[fx.Node] = set()
    labels_of: dict[str, Any] = {}
    costs: dict[str, list[Term]] = {}
    contractions: dict[str, tuple[tuple[str, int], ...]] = {}
    root = alias_roots(traced.graph, modules)
    used = used_nodes(traced.graph, modules)
    by_name: dict[str, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if "value" not in node.meta:
            raise FxpruneError(f"node {node.name} has no value: pass what fxprune.trace returned, not another graph")
        module = modules[str(node.target)] if node.op == "call_module" else None
        if node.op == "placeholder" or any(
            x in input_dependent and trees.has_tensor(x.meta["value"]) for x in _read(node)
        ):
            input_dependent.add(node)
        op = Op(
            node,
            ids,
            parameters,
            module,
            labels_of,
            summed=contractions,
            root=root,
            input_dependent=input_dependent,
            splits=splits,
        )
        labels, cost = _propagate(op)
        labels_of[node.name] = labels
        for written in () if _writes_zeros(node) else node.meta.get("mutates", ()):
            shared = root[by_name[written]]
            result = labels if node.op != "call_module" and root[node] is shared else None
            sharing[shared] = _forget_zeros(sharing.get(shared, []), labels_of, result)
            if shared.op == "get_attr" and str(shared.target) in parameters:
                parameters.write(str(shared.target), labels_of[shared.name].zero)
        by_name[node.name] = node
        sharing.setdefault(root[node], []).append(node)
        if node in used and cost:
            costs[node.name] = cost
        if summed := _summed(op):
            contractions[node.name] = tuple(dict.fromkeys((*contractions.get(node.name, ()), *summed)))
    resolved = ids.resolve()
    stuck = _fully_frozen_splits(splits, resolved, parameters)
    remarks = trace_notes(traced).remarks
    return collect(traced, resolved, parameters.by_name(), labels_of, costs, contractions, remarks), stuck


# What asks of its other tensors for no more than a type, a device or a size.
_READ_THE_FIRST = frozenset(("type_as", "to", "view_as", "reshape_as", "expand_as"))


def _read(node: fx.Node) -> list[fx.Node]:
    """The inputs of which a node reads the entries."""
    return node.all_input_nodes[:1] if node.target in _READ_THE_FIRST else node.all_input_nodes


def _fully_frozen_splits(splits: Splits, resolved: Resolved, parameters: Parameters) -> frozenset[Any]:
    """The splits where all channels are frozen, but for those of positions.

    Positions are rows of buffers, or rows of a table that is read at several places: to free them would gain nothing.
    """
    channel_of, frozen, _ = resolved
    of_buffers = np.zeros(len(channel_of), dtype=bool)
    for dim in parameters.of_buffers():
        of_buffers[dim] = True
    return frozenset(
        split
        for split, taken in splits.chosen.items()
        if not of_buffers[taken].any()
        and len(np.unique(taken)) == taken.size
        and frozen.keys() >= {*channel_of[taken].flat}
    )


def _prunable_indices(graph: ChannelGraph) -> int:
    """How many indices of parameters channels that can be pruned take."""
    free = np.zeros(graph.num_channels, dtype=bool)
    for group in graph.groups:
        free[group.channels] = True
    return sum(int(free[dim].sum()) for dims in graph.parameters.values() for dim in dims if not isinstance(dim, int))


def _writes_zeros(node: fx.Node) -> bool:
    """Whether zeros are zeros still after what the node writes."""
    return node.target is operator.setitem and isinstance(node.args[2], (int, float)) and node.args[2] == 0


def _forget_zeros(sharing: list[fx.Node], labels_of: dict[str, Any], result: Any) -> list[fx.Node]:
    """What shares memory with what was written into may be anything now, but for zeros where the result has them too.

    It has to be the whole, with the same channels in the same dimensions; None stands for a result that is not.

    Returns:
        Those that still have zeros.
    """
    left: list[fx.Node] = []

    def changed(label: Any) -> Any:
        if not isinstance(label, Labels):
            return label
        whole = isinstance(result, Labels) and len(label.dims) == len(result.dims)
        whole = whole and all(map(_is_same, label.dims, result.dims))
        zero = tuple(map(operator.and_, label.zero, result.zero)) if whole else (False,) * len(label.dims)
        if any(zero):
            left.append(node)
        return Labels(label.dims, zero)

    for node in sharing:
        labels_of[node.name] = map_labels(changed, labels_of[node.name])
    return left


def _is_same(one: Dim, other: Dim) -> bool:
    return type(one) is type(other) and bool(np.array_equal(one, other))


def _summed(op: Op) -> tuple[tuple[str, int], ...]:
    """The node's arguments, and their labelled dimensions, that are summed over."""
    names = {id(op.labels_of[n.name]): n.name for n in reversed(op.node.all_input_nodes)}
    places = ((names.get(id(x)), d) for x, d in op.contractions if not isinstance(x.dims[d], int))
    return tuple(dict.fromkeys((name, d) for name, d in places if name is not None))


def _propagate(op: Op) -> tuple[Any, list[Term]]:
    node = op.node
    if node.op == "placeholder":
        return map_values(op.value), []
    if node.op == "get_attr":
        name = str(node.target)
        return op.parameters.labels(name) if name in op.parameters else map_values(op.value), []
    if node.op == "output":
        for given in node.all_input_nodes:
            _freeze_tree(op, op.labels_of[given.name], "model output")
        return None, []
    if _makes_container(node):
        return {given.name: op.labels_of[given.name] for given in node.all_input_nodes}, []
    found = find_rule(node, op.module)
    is_number = op.value is not None and not trees.has_tensor(op.value)
    if is_number and found not in _SIZE_RULES and node.op != "call_module":
        if str(node.target) not in _HARMLESS:
            for given in node.all_input_nodes:
                _freeze_tree(op, op.labels_of[given.name], f"read by {op.name} ({node.name})")
        static = all(op.is_static(argument) for argument in node.all_input_nodes)
        return map_labels(lambda label: Size(None, static), map_values(op.value)), []
    args, kwargs = _arguments(op)
    if found is None:
        return _propagate_unknown(op, args, kwargs)
    try:
        labels = found.propagate(op, *args, **kwargs)
        return labels, found.flops_of(op, labels, *args, **kwargs) if found.flops_of else []
    except _UNFORESEEN as error:
        return _give_up(op, f"the rule of {op.name} does not take this call ({node.name}: {error})")


def _makes_container(node: fx.Node) -> bool:
    """Whether the node puts values into a dataclass or a named tuple, as models do with what they return."""
    return isinstance(node.target, type) and (is_dataclass(node.target) or hasattr(node.target, "_fields"))


# What a rule raises when it is given something that its author did not think of.
_UNFORESEEN = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


def _give_up(op: Op, reason: str) -> tuple[Any, list[Term]]:
    """Whatever has to do with the op stays whole."""
    for node in op.node.all_input_nodes:
        _freeze_tree(op, op.labels_of[node.name], reason)
    if op.module is not None:
        for name, _ in (*op.module.named_parameters(), *op.module.named_buffers()):
            _freeze_tree(op, op.weight(name, ()), reason)
    return map_values(op.value), _counted(op)


def _propagate_unknown(op: Op, args: Any, kwargs: Any) -> tuple[Any, list[Term]]:
    tensors = {n: op.labels_of[n.name] for n in op.node.all_input_nodes if isinstance(op.labels_of[n.name], Labels)}
    for node in op.node.all_input_nodes:
        if node not in tensors:
            _freeze_tree(op, op.labels_of[node.name], "inside a container given to an op without a rule")
    labels = probe(op, tensors)
    base = find_rule(op.node, op.module, overridden=True)
    if base is not None and base.flops_of is not None and isinstance(labels, Labels) and labels.labelled:
        return labels, base.flops_of(op, labels, *args, **kwargs)
    cost = _counted(op)
    if cost:
        _freeze_tree(op, labels, f"no rule for {op.name}")
    return labels, cost


class _Single(nn.Module):
    """One node as a model, to count it."""

    def __init__(self, node: fx.Node, module: nn.Module | None) -> None:
        super().__init__()
        self.node = node
        self.module = None if module is None else copy.deepcopy(module).to_empty(device="cpu")

    def forward(self, *tensors: torch.Tensor) -> Any:
        waiting = dict(zip(self.node.all_input_nodes, tensors, strict=True))
        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), waiting.__getitem__)
        if self.module is not None:
            return self.module(*args, **kwargs)
        if self.node.op == "call_method":
            return getattr(args[0], str(self.node.target))(*args[1:], **kwargs)
        return self.node.target(*args, **kwargs)  # type: ignore[operator]


def _counted(op: Op) -> list[Term]:
    """The cost of an op whose rule is not there or cannot tell, counted by fvcore on stand-ins of the same shape."""
    if op.module is None and find_rule(op.node, None) is None:
        return []
    real = tuple(_to_real(node.meta["value"]) for node in op.node.all_input_nodes)
    cost = count_flops(_Single(op.node, op.module), real)
    return [Term(cost, ())] if cost else []


def _to_real(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return torch.zeros(tree.shape, dtype=tree.dtype)
    if isinstance(tree, (tuple, list)):
        items = [_to_real(item) for item in tree]
        return tree._make(items) if hasattr(tree, "_make") else type(tree)(items)
    if isinstance(tree, dict):
        return {key: _to_real(item) for key, item in tree.items()}
    return tree


def _arguments(op: Op) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The node's arguments as rules take them: labels for tensors, values for all else."""

    def load(node: fx.Node) -> Any:
        return op.labels_of[node.name] if trees.has_tensor(node.meta["value"]) else node.meta["value"]

    def convert(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return load(argument)
        if isinstance(argument, torch.Tensor):
            return Labels.plain(argument.shape)
        if isinstance(argument, (tuple, list)):
            return tuple(convert(item) for item in argument)
        if isinstance(argument, dict):
            return {key: convert(item) for key, item in argument.items()}
        if isinstance(argument, slice):
            return slice(convert(argument.start), convert(argument.stop), convert(argument.step))
        return argument

    return convert(op.node.args), convert(op.node.kwargs)


def _freeze_tree(op: Op, tree: Any, reason: str) -> None:
    def freeze(label: Any) -> Any:
        if isinstance(label, Labels):
            for dim in label.dims:
                if not isinstance(dim, int):
                    op.ids.freeze(dim, reason)
        return label

    map_labels(freeze, tree)

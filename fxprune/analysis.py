"""Pass: traced model -> ChannelGraph."""

from __future__ import annotations

import copy
import itertools
import operator
from collections import Counter
from dataclasses import is_dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from fxprune import trees
from fxprune.channels import ChannelGraph, Dim, Dimension, Frozen, Group, Ids, IdTable, Labels, Size, map_labels
from fxprune.errors import FxpruneError
from fxprune.flops import count_flops
from fxprune.polynomial import Term, build_polynomial
from fxprune.rules import find_rule
from fxprune.rules.indexing import getitem
from fxprune.rules.probe import probe
from fxprune.rules.registry import Op, Parameters, Splits
from fxprune.rules.size import attribute, map_values, size

__all__ = ["analyze", "roots"]

# The channel of every id, the reasons of frozen channels and those of reluctant ones.
Resolved: TypeAlias = tuple[Ids, dict[int, str], dict[int, str]]
_SIZE_RULES = (attribute, getitem, size)
# What may share memory with its first argument.
_VIEWS = frozenset((
    *("view", "reshape", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "narrow", "select"),
    *("expand", "expand_as", "view_as", "reshape_as", "movedim", "moveaxis", "t", "swapaxes", "swapdims", "chunk"),
    *("split", "split_with_sizes", "tensor_split", "unbind", "diagonal", "contiguous", "detach", "to", "type_as"),
    *("float", "double", "half", "view_as_real", "view_as_complex", "dropout", "requires_grad_"),
    operator.getitem, getattr,
))  # fmt: skip
_VIEW_MODULES = (nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd, nn.Identity)
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
    fed: set[fx.Node] = set()
    labels_of: dict[str, Any] = {}
    costs: dict[str, list[Term]] = {}
    contractions: dict[str, tuple[tuple[str, int], ...]] = {}
    root = roots(traced.graph, modules)
    used = _used(traced.graph, root)
    by_name: dict[str, fx.Node] = {}
    sharing: dict[fx.Node, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if "value" not in node.meta:
            raise FxpruneError(f"node {node.name} has no value: pass what fxprune.trace returned, not another graph")
        module = modules[str(node.target)] if node.op == "call_module" else None
        if node.op == "placeholder" or any(
            x in fed and trees.has_tensor(x.meta["value"]) for x in node.all_input_nodes
        ):
            fed.add(node)
        op = Op(node, ids, parameters, module, labels_of, entering=contractions, root=root, fed=fed, splits=splits)
        labels, cost = _propagate(op)
        labels_of[node.name] = labels
        for written in () if _writes_zeros(node) else node.meta.get("mutates", ()):
            _forget_zeros(sharing.pop(root[by_name[written]], []), labels_of)
        by_name[node.name] = node
        sharing.setdefault(root[node], []).append(node)
        if node in used and cost:
            costs[node.name] = cost
        if entering := _entering(op):
            contractions[node.name] = tuple(dict.fromkeys((*contractions.get(node.name, ()), *entering)))
    resolved = ids.resolve()
    stuck = _stuck(splits, resolved, parameters)
    return _collect(traced, resolved, parameters, labels_of, costs, contractions), stuck


def _stuck(splits: Splits, resolved: Resolved, parameters: Parameters) -> frozenset[Any]:
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


def roots(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, fx.Node]:
    """For each node the one that it shares its memory with, as far as can be told: the first of them."""
    root: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        is_view = node.target in _VIEWS or name in _VIEWS or "mutates" in node.meta
        if node.op == "call_module":
            is_view = isinstance(modules[name], _VIEW_MODULES) or "mutates" in node.meta
        first = node.args[0] if node.args else None
        root[node] = root[first] if is_view and isinstance(first, fx.Node) else node
    return root


def _used(graph: fx.Graph, root: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes that the output depends on; fvcore does not count the others, which are there for their state."""
    by_name = {node.name: node for node in graph.nodes}
    written = {n: {root[by_name[name]] for name in n.meta["mutates"]} for n in graph.nodes if "mutates" in n.meta}
    used: set[fx.Node] = set()
    seen = {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    stack = [graph.output_node()]
    while stack:
        while stack:
            node = stack.pop()
            if node not in used:
                used.add(node)
                seen.add(root[node])
                stack.extend(_counted_with(node))
        # What is written into something that is seen later.
        stack = [node for node, roots in written.items() if node not in used and roots & seen]
    return used


def _counted_with(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that fvcore sees it depend on: types and devices are none, and sizes are tensors for it."""
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return []
    if node.target in _NUMBERS_OF_SIZES or (callable(node.target) and getattr(node.target, "__module__", "") == "math"):
        return []
    if node.target in (min, max):
        # Which of them it is does not stay a question.
        given = [x.meta["value"] if isinstance(x, fx.Node) else x for x in node.args]
        chosen = node.args[given.index(node.meta["value"])] if node.meta["value"] in given else None
        return [chosen] if isinstance(chosen, fx.Node) else node.all_input_nodes if chosen is None else []
    return node.all_input_nodes


# What makes a number without history of a tensor.
_NUMBERS_OF_SIZES = (int, float, round)


def _writes_zeros(node: fx.Node) -> bool:
    """Whether zeros are zeros still after what the node writes."""
    return node.target is operator.setitem and isinstance(node.args[2], (int, float)) and node.args[2] == 0


def _forget_zeros(sharing: list[fx.Node], labels_of: dict[str, Any]) -> None:
    """What shares memory with what was written into may be anything now."""
    for node in sharing:
        labels_of[node.name] = map_labels(_without_zeros, labels_of[node.name])


def _without_zeros(label: Any) -> Any:
    return Labels(label.dims, (False,) * len(label.dims)) if isinstance(label, Labels) else label


def _entering(op: Op) -> tuple[tuple[str, int], ...]:
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


def _collect(
    traced: fx.GraphModule,
    resolved: Resolved,
    parameters: Parameters,
    labels_of: dict[str, Any],
    costs: dict[str, list[Term]],
    contractions: dict[str, tuple[tuple[str, int], ...]],
) -> ChannelGraph:
    """Turn ids into channel numbers, and gather the channels that live on the same dimensions."""
    channel_of, frozen_reasons, reluctant_reasons = resolved
    num_channels = int(channel_of.max()) + 1 if len(channel_of) else 0
    converted: dict[int, Ids] = {}

    def to_channels(dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        if id(dim) not in converted:
            converted[id(dim)] = channel_of[dim]
        return converted[id(dim)]

    def convert(label: Any) -> Any:
        if isinstance(label, Labels):
            return Labels(tuple(to_channels(dim) for dim in label.dims), label.zero)
        return label if label.ids is None else Size(converted.setdefault(id(label.ids), channel_of[label.ids]), True)

    named = {name: tuple(to_channels(dim) for dim in dims) for name, dims in parameters.by_name().items()}
    labels = {name: map_labels(convert, tree) for name, tree in labels_of.items()}
    in_channels = {
        name: tuple(Term(item.coefficient, tuple(channel_of[factor] for factor in item.factors)) for item in terms)
        for name, terms in costs.items()
    }
    groups, frozen = _groups(named, list(converted.values()), num_channels, frozen_reasons, reluctant_reasons)
    return ChannelGraph(
        module=traced,
        labels=labels,
        parameters=named,
        groups=groups,
        frozen=frozen,
        flops=build_polynomial(itertools.chain.from_iterable(in_channels.values()), num_channels),
        costs=in_channels,
        num_channels=num_channels,
        contractions=contractions,
        remarks=tuple(traced.meta.get("notes", ())),
    )


def _groups(
    named: dict[str, tuple[Dim, ...]],
    carried: list[Ids],
    num_channels: int,
    frozen_reasons: dict[int, str],
    reluctant_reasons: dict[int, str],
) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    """Channels with the same set of dimensions form a group; the reasons tell groups apart too.

    The dimensions of activations (`carried`) count as well: then each dimension is made of whole groups, and none is
    left empty as long as no group is.
    """
    reasons = [("", ""), *dict.fromkeys((*_kinds(frozen_reasons, reluctant_reasons).values(),))]
    number = {reason: k for k, reason in enumerate(reasons)}
    kind = np.zeros(num_channels, dtype=np.uint64)
    for channel, reason in _kinds(frozen_reasons, reluctant_reasons).items():
        kind[channel] = number[reason]
    signature = _signatures(carried, num_channels)
    # Channels of different kinds differ in this sum as in the signature: 64 bits do not meet by chance.
    _, label = np.unique(signature + kind * np.uint64(0x9E3779B97F4A7C15), return_inverse=True)
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(num_channels + 1))
    groups: list[Group] = []
    frozen: list[Frozen] = []
    taken: Counter[str] = Counter()
    dimensions, repeats = _members(named, label, num_channels)
    for which, on in dimensions.items():
        channels = order[bounds[which] : bounds[which + 1]]
        frozen_for, reluctant_for = reasons[int(kind[channels[0]])]
        if frozen_for:
            frozen.append(Frozen(frozen_for, channels, tuple(on)))
        else:
            most = int(repeats[channels].max())
            groups.append(Group(_group_name(on, taken), channels, tuple(on), most, reluctant_for))
    return tuple(groups), tuple(frozen)


def _kinds(frozen_reasons: dict[int, str], reluctant_reasons: dict[int, str]) -> dict[int, tuple[str, str]]:
    """Channel -> (why it is frozen, why it is reluctant)."""
    reluctant = {channel: ("", reason) for channel, reason in reluctant_reasons.items()}
    return reluctant | {channel: (reason, "") for channel, reason in frozen_reasons.items()}


def _signatures(carried: list[Ids], num_channels: int) -> npt.NDArray[np.uint64]:
    """One number per channel, equal for channels that are on the same dimensions (a sum of random numbers)."""
    random = np.random.default_rng(0)
    signature = np.zeros(num_channels, dtype=np.uint64)
    seen: set[bytes] = set()
    for dim in carried:
        content = dim.tobytes()
        if content not in seen:
            seen.add(content)
            signature[dim] += random.integers(1, 2**63, dtype=np.uint64)
    return signature


def _members(
    named: dict[str, tuple[Dim, ...]], label: Ids, num_channels: int
) -> tuple[dict[int, list[Dimension]], npt.NDArray[np.int64]]:
    """Group number -> the parameters' dimensions it is on, and how often each channel occurs where it does most."""
    repeats = np.zeros(num_channels, dtype=np.int64)
    dimensions: dict[int, list[Dimension]] = {}
    on_dim: dict[int, list[int]] = {}
    for name, dims in named.items():
        for d, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            if id(dim) not in on_dim:
                channels, counts = np.unique(dim, return_counts=True)
                repeats[channels] = np.maximum(repeats[channels], counts)
                on_dim[id(dim)] = np.unique(label[channels]).tolist()
            for which in on_dim[id(dim)]:
                dimensions.setdefault(which, []).append(Dimension(name, d))
    return dimensions, repeats


def _group_name(dimensions: list[Dimension], taken: Counter[str]) -> str:
    """The module that owns the first dimension; numbered where several groups start there."""
    name = dimensions[0].parameter.rpartition(".")[0] or dimensions[0].parameter
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"

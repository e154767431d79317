"""Pass: traced model -> ChannelGraph."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx, nn

from fxprune.channels import Block, ChannelGraph, Labels, LabelTree, Size, labels_in, map_labels
from fxprune.channels.grouping import collect
from fxprune.channels.ids import Resolved
from fxprune.channels.polynomial import Term
from fxprune.errors import FxpruneError
from fxprune.flops import count_flops
from fxprune.ops import Trait, traits
from fxprune.rules import UnsupportedCall, find_rule
from fxprune.rules.allocations import live_memory
from fxprune.rules.blocks import find_blocks
from fxprune.rules.indexing import getitem
from fxprune.rules.memory import memory_place
from fxprune.rules.op import Op, map_values
from fxprune.rules.other_sizes import OtherSizes
from fxprune.rules.probe import probe
from fxprune.rules.registry import Rule
from fxprune.rules.size import attribute, size
from fxprune.rules.state import Split, Splits, State
from fxprune.running import trees
from fxprune.running.one_node import run_node, with_values
from fxprune.tracing.aliasing import used_nodes
from fxprune.tracing.graph_builder import reads_layout
from fxprune.tracing.lowering import with_later
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.spelling import first_few

__all__ = ["analyze"]

_SIZE_RULES = (attribute, getitem, memory_place, size)
# What the value of a node carries, and what the node costs.
_Outcome: TypeAlias = tuple[LabelTree, list[Term]]


def analyze(traced: fx.GraphModule) -> ChannelGraph:
    """Find which channels belong together, which cannot be pruned, and why.

    Args:
        traced: what `fxprune.trace` returns; it is not changed.

    Returns:
        The groups of channels, the frozen channels with their reasons, and the FLOPs as a polynomial.

    Raises:
        FxpruneError: the model was not traced by fxprune, or a rule has a bug.
    """
    # Ops without a rule are run, and some of them draw random numbers.
    with torch.random.fork_rng(devices=[]):
        sizes = OtherSizes(traced.graph, dict(traced.named_modules()))
        graph, stuck = _analyze(traced, Splits(), sizes)
        if stuck:
            # Where the width of attention heads cannot be pruned, whole heads may be.
            other, _ = _analyze(traced, Splits(avoided=stuck), sizes)
            if _prunable_indices(other) > _prunable_indices(graph):
                return other
    return graph


def _analyze(
    traced: fx.GraphModule, splits: Splits, sizes: OtherSizes, written: Mapping[str, tuple[bool, ...]] | None = None
) -> tuple[ChannelGraph, frozenset[Split]]:
    """The channels, and the splits that gained nothing: all channels of the chosen factor are frozen."""
    modules = dict(traced.named_modules())
    state = State.of(traced, modules, splits, sizes, written)
    used = used_nodes(traced.graph, modules)
    costs: dict[str, list[Term]] = {}
    uncounted: list[str] = []
    for node in traced.graph.nodes:
        if "value" not in node.meta:
            raise FxpruneError(f"node {node.name} has no value: pass what fxprune.trace returned, not another graph")
        if _reads_input(node, state):
            state.input_dependent.add(node)
        op = Op(node, modules[str(node.target)] if node.op == "call_module" else None, state)
        labels, cost = _propagate(op)
        state.record(node, labels, keeps_zeros=_writes_zeros(node))
        # fvcore does not count what the output does not depend on.
        if cost and node in used:
            costs[node.name] = cost
        elif node in used and not cost and _computes_products(op):
            uncounted.append(f"{op.name} (`{node.name}`)")
    if state.parameters.written != (written or {}):
        # The next call starts from what this one has written.
        return _analyze(traced, splits, sizes, state.parameters.written)
    blocks = find_blocks(traced.graph, modules, state, costs)
    memory = live_memory(traced.graph, modules, state.labels, blocks.optional)
    resolved = state.ids.resolve()
    graph = collect(
        traced,
        resolved,
        state.parameters.by_name(),
        state.labels,
        blocks.costs,
        memory,
        state.contractions,
        (*trace_notes(traced).remarks, *_not_counted(uncounted)),
        state.held,
    )
    graph = replace(
        graph,
        blocks=tuple(_in_channels(block, resolved) for block in blocks.found),
        no_blocks=blocks.refused,
        optional={
            name: tuple(tuple(resolved.channel_of[list(each)].tolist()) for each in sets)
            for name, sets in blocks.optional.items()
        },
    )
    return graph, _fully_frozen_splits(state, resolved)


def _in_channels(block: Block, resolved: Resolved) -> Block:
    """A block with channel numbers in place of ids."""
    channel_of = resolved.channel_of
    return replace(block, channel=int(channel_of[block.channel]), channels=np.unique(channel_of[block.channels]))


def _computes_products(op: Op) -> bool:
    """Whether a node without FLOPs has something to multiply: by its name, or since it gets matrices of weights."""
    if op.module is not None:
        looks_up = isinstance(op.module, (nn.Embedding, nn.EmbeddingBag))
        return not looks_up and any(parameter.ndim > 1 for parameter in op.module.parameters())
    foreign = isinstance(op.node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    given = op.node.all_input_nodes if foreign and not str(op.node.target).startswith(("aten.", "prims.")) else ()
    weights = [n for n in given if n.op == "get_attr" and str(n.target) in op.state.parameters]
    return Trait.UNCOUNTED in traits(op.node) or any(n.meta["value"].ndim > 1 for n in weights)


def _not_counted(what: list[str]) -> list[str]:
    return [f"not counted as FLOPs: {first_few(what, 4)}"] if what else []


def _reads_input(node: fx.Node, state: State) -> bool:
    """Whether a node is computed from entries of the model's input, and not only from its size."""
    read = node.all_input_nodes
    if len(read) > 1 and Trait.READS_FIRST in traits(node):
        read = read[:1]
    return node.op == "placeholder" or any(
        x in state.input_dependent and trees.has_tensor(x.meta["value"]) for x in read
    )


def _writes_zeros(node: fx.Node) -> bool:
    """Whether a node writes zeros, after which zeros are still zero."""
    return node.target is operator.setitem and isinstance(node.args[2], (int, float)) and node.args[2] == 0


def _fully_frozen_splits(state: State, resolved: Resolved) -> frozenset[Split]:
    """The splits where all channels are frozen, except splits of positions.

    Positions are rows of buffers, or rows of a table that are read at several places. To free them would gain nothing.
    """
    of_buffers = np.zeros(len(resolved.channel_of), dtype=bool)
    for dim in state.parameters.of_buffers():
        of_buffers[dim] = True
    return frozenset(
        split
        for split, taken in state.splits.chosen.items()
        if not of_buffers[taken].any()
        and len(np.unique(taken)) == taken.size
        and resolved.frozen.keys() >= {*resolved.channel_of[taken].flat}
    )


def _prunable_indices(graph: ChannelGraph) -> int:
    """How many indices of parameters belong to channels that can be pruned."""
    free = np.zeros(graph.num_channels, dtype=bool)
    for group in graph.groups:
        free[group.channels] = True
    return sum(int(free[dim].sum()) for dims in graph.parameters.values() for dim in dims if not isinstance(dim, int))


def _propagate(op: Op) -> _Outcome:
    node = op.node
    if node.op == "placeholder":
        return map_values(op.value), []
    if node.op == "get_attr":
        name = str(node.target)
        return op.state.parameters.labels(name) if name in op.state.parameters else map_values(op.value), []
    if node.op == "output":
        _freeze_inputs(op, "model output")
        return None, []
    if _makes_container(node):
        return {given.name: op.labels_of[given.name] for given in node.all_input_nodes}, []
    if _acts_elsewhere_in_training(op):
        _freeze_inputs(op, f"in other places in training ({node.name})")
        return map_values(op.value), _counted(op)
    rule = find_rule(node, op.module)
    gives_number = op.value is not None and not trees.has_tensor(op.value)
    if gives_number and rule not in _SIZE_RULES and node.op != "call_module":
        return _read_number(op), []
    return _by_probe(op) if rule is None else _by_rule(op, rule)


def _acts_elsewhere_in_training(op: Op) -> bool:
    """Whether an op takes another dimension or size in training than in eval, by which the rules go."""
    if Trait.ELEMENTWISE in traits(op.node):
        return False
    values = [(given.meta.get("train_value"), given.meta["value"]) for given in op.node.all_input_nodes]
    return any(type(a) is type(b) is int and a != b for a, b in values)


def _makes_container(node: fx.Node) -> bool:
    """Whether a node makes a dataclass, a named tuple or an ordered dict, which models return."""
    target = node.target
    made = isinstance(target, type) and (is_dataclass(target) or hasattr(target, "_fields") or target is OrderedDict)
    return made or target is with_later


def _read_number(op: Op) -> LabelTree:
    """A number that is computed from tensors or other numbers; tensors of which the entries are read stay whole."""
    if Trait.LAYOUT not in traits(op.node) and not reads_layout(op.node):
        _freeze_inputs(op, f"read by {op.name} ({op.node.name})")
    static = all(map(op.is_static, op.node.all_input_nodes))
    return map_labels(lambda label: Size(None, static), map_values(op.value))


def _by_rule(op: Op, rule: Rule[Any]) -> _Outcome:
    args, kwargs = _arguments(op)
    try:
        labels = rule.propagate(op, *args, **kwargs)
        return labels, rule.flops_of(op, labels, *args, **kwargs) if rule.flops_of else []
    except UnsupportedCall as error:
        return _give_up(op, str(error))
    except Exception as error:
        misfit = rule.misfit(op, *args, **kwargs)
        if misfit:
            return _give_up(op, misfit)
        where = f"{rule.propagate.__module__}.{rule.propagate.__qualname__}"
        raise FxpruneError(
            f"the rule {where} for {op.name} failed at node {op.node.format_node()}: {type(error).__name__}: {error}. "
            "This is a bug in the rule: please report it with the lines above, or mend the rule if it is your own"
        ) from error


def _give_up(op: Op, reason: str) -> _Outcome:
    """Freeze everything that a call has to do with, because its rule does not support it."""
    reason = f"the rule of {op.name} does not support this call ({op.node.name}: {reason})"
    _freeze_inputs(op, reason)
    if op.module is not None:
        for name, _ in (*op.module.named_parameters(), *op.module.named_buffers()):
            _freeze(op, op.find_weight(name, ()), reason)
    return map_values(op.value), _counted(op)


def _by_probe(op: Op) -> _Outcome:
    """Try an op without a rule on small tensors."""
    tensors: dict[fx.Node, Labels] = {}
    for node in op.node.all_input_nodes:
        labels = op.labels_of[node.name]
        if isinstance(labels, Labels):
            tensors[node] = labels
        else:
            _freeze(op, labels, "inside a container given to an op without a rule")
    out = probe(op, tensors)
    base = find_rule(op.node, op.module, overridden=True)
    if base is not None and base.flops_of is not None and isinstance(out, Labels) and out.labelled:
        args, kwargs = _arguments(op)
        return out, base.flops_of(op, out, *args, **kwargs)
    cost = _counted(op)
    if cost:
        _freeze(op, out, f"no rule for {op.name}")
    return out, cost


def _arguments(op: Op) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The node's arguments as rules take them: labels for tensors, values for everything else."""

    def load(node: fx.Node) -> Any:
        value = node.meta["value"]
        return op.labels_of[node.name] if trees.has_tensor(value) else value

    return with_values(op.node, load)


def _freeze_inputs(op: Op, reason: str) -> None:
    for node in op.node.all_input_nodes:
        _freeze(op, op.labels_of[node.name], reason)


def _freeze(op: Op, tree: LabelTree, reason: str) -> None:
    """As `op.freeze`, for a reason that says where."""
    for labels in labels_in(tree):
        for dim in labels.dims:
            op.ids.freeze(dim, reason)


class _OneNode(nn.Module):
    """One node as a model, to count its FLOPs."""

    def __init__(self, node: fx.Node, module: nn.Module | None) -> None:
        super().__init__()
        self.node = node
        self.module = None if module is None else copy.deepcopy(module).to_empty(device="cpu")

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = dict(zip(self.node.all_input_nodes, tensors, strict=True))
        return run_node(self.node, *with_values(self.node, given.__getitem__), self.module)


def _counted(op: Op) -> list[Term]:
    """The cost of an op whose rule is missing or cannot tell, counted by fvcore on tensors of the same shapes."""
    if "flops" in op.node.meta:
        # Of a part that follows values, for which zeros are not good enough.
        return [Term(op.node.meta["flops"], ())]
    if op.module is None and find_rule(op.node, None) is None:
        return []
    zeros = tuple(_zeros(node.meta["value"]) for node in op.node.all_input_nodes)
    try:
        cost = count_flops(_OneNode(op.node, op.module), zeros)
    except FxpruneError as error:
        raise FxpruneError(f"cannot count the FLOPs of {op.name} ({op.node.name}): {error.__cause__}") from error
    return [Term(cost, ())] if cost else []


def _zeros(tree: Any) -> Any:
    """A value with zeros on the CPU in place of its tensors."""
    return trees.map_tensors(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), tree)

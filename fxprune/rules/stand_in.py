"""The entries of removed channels, for an op that reads all channels, such as a variance over them.

In the zero-masked model such an entry is zero, or what element-wise ops make of zero and of values that are the same
for all channels: in `(x - x.mean(1, keepdim=True)) ** 2` it is the square of the mean. In the smaller model the same
ops compute it from zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import fx

from fxprune.channels import Labels, LabelTree, size_of
from fxprune.ops import Trait, traits
from fxprune.rules.elementwise import activation, elementwise, unchanged
from fxprune.rules.op import Op
from fxprune.rules.registry import find_rule
from fxprune.rules.rewrite import Rewrite

__all__ = ["append_removed", "sum_over_appended"]


def sum_over_appended(op: Op, x: fx.Node, d: int) -> bool:
    """Whether the entries of removed channels can be computed along dimension `d` of an argument.

    If so, gates act on the tensors of which they are computed.
    """
    made = _made_of(x, d - len(x.meta["value"].shape), op.labels_of)
    if made is None or not _unwritten(op.node, [node for node, _, _ in made]):
        return False
    # A tensor that is written into later has lost its zeros when the graph is rewritten.
    later = itertools.dropwhile(lambda node: node is not op.node, op.node.graph.nodes)
    if op.state.written_by(later) & {op.state.roots[source] for _, source, _ in made}:
        return False
    for user, source, dim in made:
        op.sums_over_at(user or op.node, source, dim)
    return True


def append_removed(op: Rewrite, x: fx.Node, d: int) -> fx.Node | None:
    """An argument with the entries of the removed channels appended along `d`; None if they cannot be computed."""
    labels = op.labels(x)
    if _made_of(x, d - len(labels.dims), op.labels_of) is None:
        return None
    removed = _removed_entry(op, x, d - len(labels.dims), {})
    lost = size_of(labels.dims[d]) - op.size(labels.dims[d])
    sizes = [lost if k == d else -1 for k in range(len(labels.dims))]
    return op.insert(torch.cat, ((x, op.insert(torch.Tensor.expand, (removed, *sizes))), d))


# An op (None for none), the operand that it reads, and the dimension of its channels.
_Made: TypeAlias = list[tuple[fx.Node | None, fx.Node, int]]


def _made_of(x: fx.Node, d: int, labels_of: Mapping[str, LabelTree]) -> _Made | None:
    """The tensors with zeros in removed channels that `x` is computed from, each with the op that reads it.

    Args:
        x: a tensor of the graph.
        d: the dimension, counted from the end, as dimensions are broadcast.
        labels_of: what the values of nodes carry.

    Returns:
        None if `x` is not computed from such tensors by ops alone that do to each channel what they do to the others.
    """
    found: _Made = []
    seen: set[fx.Node] = set()
    stack: _Made = [(None, x, d)]
    while stack:
        user, node, _ = stack.pop()
        labels = labels_of[node.name]
        if not isinstance(labels, Labels):
            return None
        if labels.zero[d]:
            found.append((user, node, d % len(labels.dims)))
        elif not (_is_elementwise(node) or _reduces_positions(node, labels, labels_of)):
            return None
        elif node not in seen:
            seen.add(node)
            stack.extend((node, operand, d) for operand in _per_channel(node, d, labels_of))
    return found


def _is_elementwise(node: fx.Node) -> bool:
    """Whether each entry of a node is computed from those in its place, with the same result each time."""
    module = node.graph.owning_module.get_submodule(str(node.target)) if node.op == "call_module" else None  # type: ignore[union-attr]
    random = "random" in node.meta or (module is not None and Trait.RANDOM in traits(node, module))
    return find_rule(node, module) in (activation, elementwise, unchanged) and not random


def _reduces_positions(node: fx.Node, out: Labels, labels_of: Mapping[str, LabelTree]) -> bool:
    """Whether a node is a reduction along dimensions without channels, which stay with one entry."""
    whole = labels_of[node.all_input_nodes[0].name] if Trait.REDUCTION in traits(node) else None
    return (
        isinstance(whole, Labels)
        and len(whole.dims) == len(out.dims)
        and all(a is b or (isinstance(a, int) and b == 1) for a, b in zip(whole.dims, out.dims, strict=True))
    )


def _per_channel(x: fx.Node, d: int, labels_of: Mapping[str, LabelTree]) -> Iterator[fx.Node]:
    """The operands that are not the same for all channels."""
    for operand in x.all_input_nodes:
        labels = labels_of[operand.name]
        if isinstance(labels, Labels) and -d <= len(labels.dims) and size_of(labels.dims[d]) != 1:
            yield operand


def _unwritten(end: fx.Node, ops: list[fx.Node | None]) -> bool:
    """Whether nothing is written in place between the first of some ops and `end`."""
    waiting = {node for node in ops if node is not None}
    node = end
    while waiting:
        node = node.prev
        if "mutates" in node.meta:
            return False
        waiting.discard(node)
    return True


def _removed_entry(op: Rewrite, x: fx.Node, d: int, entries: dict[fx.Node, fx.Node]) -> fx.Node:
    """The entry of a removed channel, of size 1 along `d`; `entries` has those that were computed before."""
    if x not in entries and op.labels(x).zero[d]:
        entries[x] = op.insert(torch.zeros_like, (op.insert(torch.narrow, (x, d, 0, 1)),))
    elif x not in entries:
        for operand in _per_channel(x, d, op.labels_of):
            _removed_entry(op, operand, d, entries)
        with op.node.graph.inserting_before(op.node):
            entries[x] = op.node.graph.node_copy(x, lambda operand: entries.get(operand, operand))
        entries[x].meta = {}
    return entries[x]

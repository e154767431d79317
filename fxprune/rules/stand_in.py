"""What stands in the places of removed channels where an op looks at all of them, as a variance over channels does.

In the zero-masked model an entry of a removed channel is zero, or what element-wise ops make of zero and of values that
are the same for all channels: in `(x - x.mean(1, keepdim=True)) ** 2` it is the square of the mean. The same ops make
it of zeros, without the channel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from fxprune.channels import Labels, size_of
from fxprune.rules.elementwise import activation, elementwise, unchanged
from fxprune.rules.registry import Op, Rewrite, find_rule

__all__ = ["append_removed", "sum_over_appended"]


def sum_over_appended(op: Op, x: fx.Node, d: int) -> bool:
    """Whether the removed entries of an argument can be computed along `d`; gates then act where they are zero."""
    rank = len(op.labels_of[x.name].dims)
    made = _made_of(x, d - rank, op.labels_of)
    if made is None or not _unwritten(op.node, [node for node, _, _ in made]):
        return False
    # Of what is changed in place later, the zeros are not there when the graph is rewritten.
    later = itertools.dropwhile(lambda node: node is not op.node, op.node.graph.nodes)
    if op.written(later) & {op.root[source] for _, source, _ in made}:
        return False
    for user, source, dim in made:
        op.enters_at(user or op.node, source, dim)
    return True


def append_removed(op: Rewrite, x: fx.Node, d: int) -> fx.Node | None:
    """An argument with the entries of the removed channels appended along `d`; None where they are not known."""
    labels = op.labels(x)
    if _made_of(x, d - len(labels.dims), op.labels_of) is None:
        return None
    removed = _removed_entry(op, x, d - len(labels.dims), {})
    lost = size_of(labels.dims[d]) - op.size(labels.dims[d])
    sizes = [lost if k == d else -1 for k in range(len(labels.dims))]
    return op.insert(torch.cat, ((x, op.insert(torch.Tensor.expand, (removed, *sizes))), d))


Made = list[tuple[fx.Node | None, fx.Node, int]]


def _made_of(x: fx.Node, d: int, labels_of: dict[str, Any]) -> Made | None:
    """The ops that make `x` of what is zero in removed channels: (op, operand, dimension), with None for no op.

    `d` counts from the end, as dimensions do when they broadcast. None if `x` is made in other ways.
    """
    found: Made = []
    seen: set[fx.Node] = set()
    stack: Made = [(None, x, d)]
    while stack:
        user, node, _ = stack.pop()
        labels = labels_of[node.name]
        if labels.zero[d]:
            found.append((user, node, d % len(labels.dims)))
        elif not _is_elementwise(node):
            return None
        elif node not in seen:
            seen.add(node)
            stack.extend((node, operand, d) for operand in _per_channel(node, d, labels_of))
    return found


def _is_elementwise(node: fx.Node) -> bool:
    """Whether a node's entries are made of those in their places, each time the same."""
    module = node.graph.owning_module.get_submodule(str(node.target)) if node.op == "call_module" else None  # type: ignore[union-attr]
    found = find_rule(node, module)
    return found in (activation, elementwise, unchanged) and not isinstance(module, (_DropoutNd, nn.RReLU))


def _per_channel(x: fx.Node, d: int, labels_of: dict[str, Any]) -> Iterator[fx.Node]:
    """The operands that are not the same for all channels."""
    for operand in x.all_input_nodes:
        labels = labels_of[operand.name]
        if isinstance(labels, Labels) and -d <= len(labels.dims) and size_of(labels.dims[d]) != 1:
            yield operand


def _unwritten(end: fx.Node, ops: list[fx.Node | None]) -> bool:
    """Whether nothing is changed in place, or at random, between the first of some ops and `end`."""
    waiting = {node for node in ops if node is not None}
    node = end
    while waiting:
        node = node.prev
        if "mutates" in node.meta or (node in waiting and "random" in node.meta):
            return False
        waiting.discard(node)
    return True


def _removed_entry(op: Rewrite, x: fx.Node, d: int, entries: dict[fx.Node, fx.Node]) -> fx.Node:
    """The entry of a removed channel, of size 1 along `d`; `entries` has those that are there already."""
    if x not in entries and op.labels(x).zero[d]:
        entries[x] = op.insert(torch.zeros_like, (op.insert(torch.narrow, (x, d, 0, 1)),))
    elif x not in entries:
        for operand in _per_channel(x, d, op.labels_of):
            _removed_entry(op, operand, d, entries)
        with op.node.graph.inserting_before(op.node):
            entries[x] = op.node.graph.node_copy(x, lambda operand: entries.get(operand, operand))
        entries[x].meta = {}
    return entries[x]

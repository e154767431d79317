"""Whether the next call of a model does what the first did, although it has changed what it keeps in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.ops import Trait, name_of_op, traits
from fxprune.tracing.aliasing import alias_roots
from fxprune.tracing.graph_builder import GraphBuilder, reads_layout
from fxprune.tracing.modes import is_other_value
from fxprune.tracing.python_state import Watched
from fxprune.tracing.runs import Leaves, Recording, Runner
from fxprune.tracing.state import STATE_IS_LOST, state_is_lost

__all__ = ["computes_the_same", "lost_on_next_call"]


def lost_on_next_call(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> list[str]:
    """A remark on what forward has changed in Python, if the next call does something else because of it."""
    if not recorded.changed or any(said.startswith(STATE_IS_LOST) for said in recorded.builder.remarks):
        return []
    try:
        again = runner.record_next(recorded, leaves, kept)
        if not computes_the_same(recorded.builder, again.builder):
            return [state_is_lost(recorded.changed)]
        counters = again.kept.count_on([place for place in again.changed if place in recorded.changed])
        if counters:
            later = runner.record_next(again, leaves, kept)
            used = any(isinstance(counter, Watched) and counter.used for counter in counters)
            if used or not computes_the_same(again.builder, later.builder):
                return [state_is_lost(again.changed)]
    except FxpruneError as error:
        return [state_is_lost(recorded.changed, error)]
    return []


def computes_the_same(first: GraphBuilder, second: GraphBuilder) -> bool:
    """Whether the second call of a model, recorded after the first, gives the same function of the inputs.

    Tensors that are left from the first call are the same in each call if the input has no part in them, as tables
    have, or if the graph of the first writes them where it reads them from.
    """
    return _Comparison(first, second).run()


class _Comparison:
    def __init__(self, first: GraphBuilder, second: GraphBuilder) -> None:
        self._first, self._second = first, second
        self._roots = [_roots(builder) for builder in (first, second)]
        self._of_input = _depending_on_inputs(first.graph, self._roots[0])
        self._pairs: list[tuple[Any, Any]] = []
        self._seen: set[tuple[fx.Node, fx.Node]] = set()

    def run(self) -> bool:
        effects = [list(_effects(*each)) for each in zip((self._first, self._second), self._roots, strict=True)]
        outputs = self._first.graph.output_node(), self._second.graph.output_node()
        if len(effects[0]) != len(effects[1]):
            return False
        self._pairs = [*zip(*effects, strict=True), outputs]
        return all(self._agree(*self._pairs.pop()) for _ in iter(self._pairs.__len__, 0))

    def _agree(self, ours: Any, theirs: Any) -> bool:
        """Whether two values may be the same, if those are the same that are now to be compared."""
        if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node):
            return (ours, theirs) in self._seen or self._nodes_agree(ours, theirs)
        if isinstance(ours, slice) and isinstance(theirs, slice):
            ours, theirs = (ours.start, ours.stop, ours.step), (theirs.start, theirs.stop, theirs.step)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if ours.keys() != theirs.keys():
                return False
            ours, theirs = list(ours.values()), [theirs[key] for key in ours]
        if isinstance(ours, (tuple, list)) and isinstance(theirs, (tuple, list)):
            self._pairs.extend(zip(ours, theirs, strict=False))
            return len(ours) == len(theirs)
        return not is_other_value(ours, theirs)

    def _nodes_agree(self, ours: fx.Node, theirs: fx.Node) -> bool:
        self._seen.add((ours, theirs))
        alike = (ours.op, ours.target) == (theirs.op, theirs.target)
        named = theirs.op == "get_attr" and theirs.target not in self._second.constants
        if named and alike and ours.meta["value"] is theirs.meta["value"]:
            return True
        left = theirs if theirs.graph is self._first.graph else self._second.left.get(theirs)
        if named and left is None:
            left = self._first.find(theirs.meta["value"])
        if left is not None:
            return (ours is left and left not in self._of_input) or self._first.stored.get(left) is ours
        if not alike:
            return ours.op == theirs.op == "get_attr" and self._constants_agree(str(ours.target), str(theirs.target))
        self._pairs.extend(((ours.args, theirs.args), (ours.kwargs, theirs.kwargs)))
        path = str(ours.target)
        own = ours.op == "call_module" and path not in self._first.added_modules
        return not own or self._first.module(path) is self._second.module(path)

    def _constants_agree(self, ours: str, theirs: str) -> bool:
        a, b = self._first.constants.get(ours), self._second.constants.get(theirs)
        return a is not None and b is not None and _equal(a, b)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))


def _roots(builder: GraphBuilder) -> dict[fx.Node, fx.Node]:
    nodes = [node for node in builder.graph.nodes if node.op == "call_module"]
    return alias_roots(builder.graph, {str(node.target): builder.module(str(node.target)) for node in nodes})


def _written(node: fx.Node, roots: dict[fx.Node, fx.Node], by_name: dict[str, fx.Node]) -> list[fx.Node]:
    return [roots[by_name[name]] for name in node.meta.get("mutates", ())]


def _effects(builder: GraphBuilder, roots: dict[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """The nodes that change the state of the model or of random numbers, or its input."""
    by_name = {node.name: node for node in builder.graph.nodes}
    for node in builder.graph.nodes:
        holds = node.op == "call_module" and any(True for _ in builder.module(str(node.target)).buffers())
        if holds or any(root.op in ("get_attr", "placeholder") for root in _written(node, roots, by_name)):
            yield node


def _depending_on_inputs(graph: fx.Graph, roots: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes that are not the same in each call."""
    by_name = {node.name: node for node in graph.nodes}
    found: set[fx.Node] = set()
    changed = {root for node in graph.nodes for root in _written(node, roots, by_name) if root.op == "get_attr"}
    for node in graph.nodes:
        if node.op == "placeholder" or "random" in node.meta or node in changed or not found.isdisjoint(_read_by(node)):
            found.add(node)
            found.update(_written(node, roots, by_name))
    return found


# What they give has the type, device or size of their first argument, and none of its entries.
_LIKE_FIRST = frozenset({
    "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "empty_like", "full_like", "ones_like",
    "zeros_like",
})  # fmt: skip


def _read_by(node: fx.Node) -> list[fx.Node]:
    """The arguments whose entries a node may read."""
    first = node.args[:1]
    if reads_layout(node) or Trait.LAYOUT in traits(node):
        return []
    if Trait.READS_FIRST in traits(node):
        return [each for each in first if isinstance(each, fx.Node)]
    alike = name_of_op(node.target) in _LIKE_FIRST
    return [each for each in node.all_input_nodes if not (alike and each in first)]

"""How many dimensions tensors have: the graph has what the model's code did for those of the example."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import Tensor, fx

from fxprune.ops import name_of_op
from fxprune.running import trees
from fxprune.tracing.checks import check_rank
from fxprune.tracing.graph_builder import GraphBuilder, computed_from, entries_read
from fxprune.tracing.scopes import ModuleCall

__all__ = ["insert_rank_checks"]


def insert_rank_checks(builder: GraphBuilder, reads: Mapping[fx.Node, ModuleCall]) -> None:
    """Put checks into the graph for the ranks of inputs, where its code has read a rank that follows from them.

    Args:
        builder: of the graph.
        reads: the nodes whose ranks were read, with the module call that did first.
    """
    sources: dict[fx.Node, ModuleCall] = {}
    for node, call in reads.items():
        for source in _sources(node):
            sources.setdefault(source, call)
    nodes = list(builder.graph.nodes)
    for source, call in sources.items():
        rest = iter(nodes[nodes.index(source) + 1 :])
        place = next(node for node in rest if node.op != "placeholder")
        where = f"`{call[0] or type(builder.root).__name__}`"
        with builder.scopes.within(call), builder.graph.inserting_before(place):
            builder.create_check(check_rank, (source, source.meta["value"].dim(), source.name, where))


def _sources(node: fx.Node) -> list[fx.Node]:
    """The nodes that decide how many dimensions the tensor of a node has: inputs, and what loses sizes of 1."""
    return [
        current
        for current in computed_from(node, lambda each: [] if _has_own_rank(each) else entries_read(each))
        if isinstance(current.meta["value"], Tensor) and (_is_input(current) or name_of_op(current.target) == "squeeze")
    ]


def _is_input(node: fx.Node) -> bool:
    """Whether a node is an input, or an entry of one."""
    while node.target in (operator.getitem, getattr) and not isinstance(node.args[0].meta["value"], Tensor):  # type: ignore[union-attr]
        node = node.args[0]  # type: ignore[assignment]
    return node.op == "placeholder"


def _has_own_rank(node: fx.Node) -> bool:
    """Whether the call itself says how many dimensions its result has."""
    shaped = name_of_op(node.target) in ("view", "reshape", "expand", "permute", "repeat", "new_zeros", "new_ones")
    return shaped or not trees.has_tensor([each.meta["value"] for each in node.all_input_nodes])

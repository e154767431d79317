"""Which nodes share memory, and which of them the output depends on."""

from __future__ import annotations

from torch import fx, nn

from fxprune.ops import Trait, traits

__all__ = ["alias_roots", "used_nodes", "written_attributes"]


def alias_roots(graph: fx.Graph, modules: dict[str, nn.Module], *, follow_data: bool = True) -> dict[fx.Node, fx.Node]:
    """For each node the one that it shares its memory with, as far as can be told: the first of them.

    Args:
        graph: of a traced model.
        modules: those that it calls, by path.
        follow_data: whether `x.data` counts as `x`; what is written there is hidden from autograd and torch.jit.
    """
    root: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        is_view = Trait.VIEW in traits(node, modules.get(str(node.target))) or "mutates" in node.meta
        if node.target is getattr and node.args[1] == "data":
            is_view = follow_data
        first = node.args[0] if node.args else None
        root[node] = root[first] if is_view and isinstance(first, fx.Node) else node
    return root


def written_attributes(traced: fx.GraphModule) -> set[str]:
    """The parameters, buffers and constants into which a traced model writes when it runs."""
    root = alias_roots(traced.graph, dict(traced.named_modules()))
    written = set().union(*_written_by(traced.graph, root).values())
    return {str(node.target) for node in written if node.op == "get_attr"}


def _written_by(graph: fx.Graph, root: dict[fx.Node, fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """What each node writes into, by the nodes that the memory is of."""
    by_name = {node.name: node for node in graph.nodes}
    return {n: {root[by_name[name]] for name in n.meta["mutates"]} for n in graph.nodes if "mutates" in n.meta}


def used_nodes(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """The nodes that the output depends on; fvcore does not count the others, which are there for their state."""
    root = alias_roots(graph, modules, follow_data=False)
    written = _written_by(graph, root)
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
        stack = [node for node, alias_roots in written.items() if node not in used and alias_roots & seen]
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

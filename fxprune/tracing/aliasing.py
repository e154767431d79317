"""Which nodes share memory, and which nodes fvcore counts."""

from __future__ import annotations

from torch import fx, nn

from fxprune.ops import Trait, traits
from fxprune.running.mode_blocks import chooses, modes_of
from fxprune.tracing.limits import limit_of

__all__ = ["alias_roots", "attributes_written_in", "counted_inputs", "used_nodes", "written_attributes"]


def alias_roots(graph: fx.Graph, modules: dict[str, nn.Module], *, follow_data: bool = True) -> dict[fx.Node, fx.Node]:
    """For each node, the first node that it may share memory with: its alias root.

    Args:
        graph: of a traced model.
        modules: the modules that it calls, by path.
        follow_data: whether `x.data` shares memory with `x`; autograd and torch.jit do not see what is written there.
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
    """The names of the parameters, buffers and constants that a traced model writes into when it runs."""
    return attributes_written_in(traced.graph, dict(traced.named_modules()))


def attributes_written_in(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[str]:
    """As `written_attributes`, of a graph and the modules that it calls, by path."""
    written = set().union(*_written_by(graph, alias_roots(graph, modules)).values())
    return {str(node.target) for node in written if node.op == "get_attr"}


def _written_by(graph: fx.Graph, root: dict[fx.Node, fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """For each node that writes, the alias roots of what it writes into."""
    by_name = {node.name: node for node in graph.nodes}
    return {n: {root[by_name[name]] for name in n.meta["mutates"]} for n in graph.nodes if "mutates" in n.meta}


def used_nodes(graph: fx.Graph, modules: dict[str, nn.Module]) -> set[fx.Node]:
    """The nodes that the output in eval depends on, or that write into tensors of the model or its caller.

    fvcore counts no others. It does not see what is written into `x.data`.
    """
    root = alias_roots(graph, modules, follow_data=False)
    training = {node for node, (_, in_training) in modes_of(graph).items() if in_training}
    written = {node: into for node, into in _written_by(graph, root).items() if node not in training}
    used: set[fx.Node] = set()
    seen = {node for node in graph.nodes if node.op in ("placeholder", "get_attr")}
    stack = [graph.output_node()]
    while stack:
        while stack:
            node = stack.pop()
            if node not in used:
                used.add(node)
                seen.add(root[node])
                stack.extend(counted_inputs(node))
        # Nodes that write into something that is used.
        stack = [node for node, into in written.items() if node not in used and into & seen]
    return used


def counted_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs that a node depends on for fvcore, to which types and devices are constants, and sizes are tensors."""
    if node.target is limit_of or (node.target is getattr and node.args[1] in ("dtype", "device")):
        return []
    if chooses(node):
        in_eval: list[fx.Node] = []
        fx.node.map_arg(node.args[1], in_eval.append)
        return in_eval
    if node.target in _NUMBERS_OF_SIZES or (callable(node.target) and getattr(node.target, "__module__", "") == "math"):
        return []
    if node.target in (min, max):
        # torch.jit, which fvcore uses, records the number that was chosen.
        given = [x.meta["value"] if isinstance(x, fx.Node) else x for x in node.args]
        chosen = node.args[given.index(node.meta["value"])] if node.meta["value"] in given else None
        return [chosen] if isinstance(chosen, fx.Node) else node.all_input_nodes if chosen is None else []
    return node.all_input_nodes


# They turn a tensor into a number, which torch.jit does not trace.
_NUMBERS_OF_SIZES = (int, float, round)

"""Guards: what a model's code did because of a size, in a loop or a branch, holds in the graph for that size only."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.fixed_sizes import Fixed, fixed_sizes
from fxprune.tracing.graph_builder import GraphBuilder, reads_size
from fxprune.tracing.limits import limit_of
from fxprune.tracing.rolling import has_loops, roll
from fxprune.tracing.size_nodes import Guard, SizeNodes, are_fixed, leaves_of
from fxprune.tracing.sizes import TracedNumber, read_size
from fxprune.tracing.spelling import first_few
from fxprune.tracing.traced_module import copy_graph
from fxprune.tracing.user_code import Place

__all__ = ["insert_guards", "named_sizes", "needed_guards", "tie_loops"]

_SIGNS: dict[Any, str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=",
}  # fmt: skip


def insert_guards(builder: GraphBuilder, sizes: SizeNodes) -> list[str]:
    """Put checks into the graph for all that its code relied on and that other inputs could change.

    Returns:
        A remark on them; nothing where there are none.
    """
    if not sizes.guards:
        return []
    fixed = fixed_sizes(builder.graph, builder.module)
    inserted: dict[str, str] = {}
    loops: dict[str, list[int]] = {}
    # Those of loops come last: what else relies on the same number needs the check in any case.
    repeated = [guard.loop is not None and builder.repeats(guard.loop) for guard in sizes.guards]
    for repeats, guard in sorted(zip(repeated, sizes.guards, strict=True), key=operator.itemgetter(0)):
        loop = guard.loop if repeats else None
        what = _spell(guard.function, guard.operands)
        if what in loops and loop is not None:
            loops[what].append(loop)
        if what in inserted or not _is_needed(guard, fixed):
            continue
        path, _ = guard.call
        inserted[what] = f"`{path or type(builder.root).__name__}`"
        check = _insert(builder, sizes, guard, what, inserted[what])
        if loop is not None:
            check.meta["loops"] = loops[what] = [loop]
            if loop in builder.confirmed_loops:
                check.meta["few"] = True
    return _remarks({what: where for what, where in inserted.items() if what not in loops})


def _is_needed(guard: Guard, fixed: Mapping[fx.Node, Fixed]) -> bool:
    """Whether another input could change what the code relied on."""
    if are_fixed(guard.operands, fixed):
        return False
    return len(guard.operands) != 2 or _name(guard.operands[0]) != _name(guard.operands[1])


def needed_guards(builder: GraphBuilder, sizes: SizeNodes) -> list[Guard]:
    """The guards that another input could violate."""
    fixed = fixed_sizes(builder.graph, builder.module) if sizes.guards else {}
    return [guard for guard in sizes.guards if _is_needed(guard, fixed)]


def named_sizes(builder: GraphBuilder, sizes: SizeNodes) -> set[Place]:
    """Where the code found that a size is one that it names, and nothing else ties the graph to that size."""
    needed = needed_guards(builder, sizes) if any(guard.place for guard in sizes.guards) else []
    # Where the code goes the same way for all larger or all smaller sizes, the graph has that way.
    edges = {(guard.edge, *map(_name, guard.operands)) for guard in needed if guard.edge}
    needed = [guard for guard in needed if not guard.edge or (-guard.edge, *map(_name, guard.operands)) in edges]
    leaves = [{_name(leaf) for leaf in leaves_of(guard.operands)} for guard in needed]
    tied = {name for guard, names in zip(needed, leaves, strict=True) if _ties(guard) for name in names}
    found = {guard.place for guard, names in zip(needed, leaves, strict=True) if guard.place and not names <= tied}
    # A loop may ask there for other sizes too, which no input changes: their branch is right as it is.
    alike = {id(guard) for guard in needed}
    return found - {guard.place for guard in sizes.guards if id(guard) not in alike}


def _ties(guard: Guard) -> bool:
    """Whether the graph takes one size alone, whatever branch its code has."""
    if guard.place is not None or guard.loop is not None:
        return False
    named = sum(not isinstance(operand, TracedNumber) for operand in guard.operands)
    return guard.function is operator.pos or (guard.function is operator.eq and guard.traced and named == 1)


def _remarks(inserted: Mapping[str, str]) -> list[str]:
    if not inserted:
        return []
    named = first_few([f"`{what}` in {where}" for what, where in inserted.items()], 4)
    remark = (
        "Loops and branches that follow sizes are those of the example, and the graph refuses inputs for which they"
    )
    return [f"{remark} would differ: {named}."]


def tie_loops(graph: fx.Graph) -> list[str]:
    """Tie a graph to the sizes of those loops whose steps are not alike.

    Returns:
        A remark on them; nothing where there are none.
    """
    if not has_loops(graph):
        return []
    trial = copy_graph(graph)
    roll(trial)
    left = {node.name for node in trial.nodes}
    tied = [node for node in graph.nodes if "loops" in node.meta and node.name in left]
    for check in tied:
        del check.meta["loops"]
    return _remarks({str(check.args[2]): str(check.args[3]) for check in tied})


def _insert(builder: GraphBuilder, sizes: SizeNodes, guard: Guard, what: str, where: str) -> fx.Node:
    # As early as possible: what runs at other sizes fails with less helpful messages.
    nodes = {leaf.node() for leaf in leaves_of(guard.operands)}
    place = [node for node in builder.graph.nodes if node in nodes][-1].next
    while place.op == "placeholder":
        place = place.next
    with builder.scopes.within(guard.call), builder.graph.inserting_before(place):
        if guard.function is operator.pos:
            value = guard.operands[0].node()
        else:
            value = sizes.number_node(guard.function, guard.operands, guard.traced)
        return builder.create_check(check_as_traced, (value, guard.traced, what, where))


def _name(operand: Any) -> str:
    if not isinstance(operand, TracedNumber):
        return repr(operand)
    if operand.function is read_size:
        node, dim = operand.operands
        return f"{node.name}.size({dim})"
    if operand.cached is not None and operand.function not in _SIGNS:
        read = operand.cached
        if read.target is limit_of:
            return f"the limit {read.args[1]} of {read.args[0]}.dtype"
        return f"{read.args[0]}.{read.target}({', '.join(map(str, read.args[1:]))})" if reads_size(read) else read.name
    return _spell(operand.function, operand.operands)


def _spell(function: Callable[..., Any], operands: tuple[Any, ...]) -> str:
    if function is operator.pos:
        return _name(operands[0])
    names = [_name(operand) for operand in operands]
    if function in _SIGNS:
        inner = [f"({name})" if _is_compound(operand) else name for name, operand in zip(names, operands, strict=True)]
        return f" {_SIGNS[function]} ".join(inner)
    return f"{function.__name__}({', '.join(names)})"


def _is_compound(operand: Any) -> bool:
    return isinstance(operand, TracedNumber) and operand.function in _SIGNS

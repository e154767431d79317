"""Guards: what a model's code did because of a size, a loop or a branch, holds in the graph for that size only."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.fixed_sizes import fixed_sizes, is_whole
from fxprune.tracing.nodes import Guard
from fxprune.tracing.recording import Recorder
from fxprune.tracing.sizes import TracedNumber, read_size

__all__ = ["insert_guards"]

_SIGNS: dict[Any, str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=",
    operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
# More of them are counted in the note, and not named.
_MOST_NAMED = 4


def insert_guards(recorded: Recorder) -> list[str]:
    """Checks in the graph of all that its code has followed and that other inputs could change, and a note on them."""
    if not recorded.guards:
        return []
    fixed = fixed_sizes(recorded)
    inserted: dict[str, str] = {}
    for guard in recorded.guards:
        what = _spelt(guard.function, guard.operands)
        if what in inserted or all(is_whole(_leaf_size(leaf, fixed)) for leaf in _leaves(guard.operands)):
            continue
        if len(guard.operands) == 2 and _name(guard.operands[0]) == _name(guard.operands[1]):
            continue
        where = f"`{guard.scope[0]}`" if guard.scope[0] else f"`{type(recorded.root).__name__}`"
        inserted[what] = where
        _insert(recorded, guard, what, where)
    if not inserted:
        return []
    named = [f"`{what}` in {where}" for what, where in list(inserted.items())[:_MOST_NAMED]]
    more = f" and {len(inserted) - len(named)} more" if len(inserted) > len(named) else ""
    note = (
        "Loops and branches that follow sizes are those of the example, and the graph refuses inputs for which they "
        f"are others: {', '.join(named)}{more}."
    )
    return [note]


def _insert(recorded: Recorder, guard: Guard, what: str, where: str) -> None:
    # As early as can be: what is computed with other sizes fails in ways that say less.
    nodes = {leaf.node() for leaf in _leaves(guard.operands)}
    last = [node for node in recorded.graph.nodes if node in nodes][-1]
    recorded.scope.append(guard.scope)
    with recorded.graph.inserting_before(last.next):
        if guard.function is operator.pos:
            value = guard.operands[0].node()
        else:
            value = recorded.number_node(guard.function, guard.operands, guard.traced)
        recorded.create_check(check_as_traced, (value, guard.traced, what, where))
    recorded.scope.pop()


def _leaves(operands: tuple[Any, ...]) -> Iterator[TracedNumber]:
    """The numbers that are read off tensors, of all that others are computed from."""
    for operand in operands:
        if isinstance(operand, (tuple, list)):
            yield from _leaves(tuple(operand))
        elif isinstance(operand, TracedNumber):
            if operand.cached is None and operand.function is not read_size:
                yield from _leaves(operand.operands)
            else:
                yield operand


def _leaf_size(leaf: TracedNumber, fixed: dict[fx.Node, Any]) -> Any:
    if leaf.function is read_size:
        node, dim = leaf.operands
        return fixed[node][dim]
    return fixed.get(leaf.node(), False)


def _name(operand: Any) -> str:
    if not isinstance(operand, TracedNumber):
        return repr(operand)
    if operand.function is read_size:
        node, dim = operand.operands
        return f"{node.name}.size({dim})"
    if operand.cached is not None and operand.function not in _SIGNS:
        return operand.cached.name
    return _spelt(operand.function, operand.operands)


def _spelt(function: Callable[..., Any], operands: tuple[Any, ...]) -> str:
    if function is operator.pos:
        return _name(operands[0])
    names = [_name(operand) for operand in operands]
    if function in _SIGNS:
        inner = [f"({name})" if _is_compound(operand) else name for name, operand in zip(names, operands, strict=True)]
        return f" {_SIGNS[function]} ".join(inner)
    return f"{function.__name__}({', '.join(names)})"


def _is_compound(operand: Any) -> bool:
    return isinstance(operand, TracedNumber) and operand.function in _SIGNS

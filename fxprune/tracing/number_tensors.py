"""Whole numbers that go through tensors on their way from sizes to the model's code, as `torch.tensor(x.shape)[1] * 2`.

The graph computes with the numbers alone: a number that is read from a tensor breaks the graphs of `torch.compile` and
`torch.export`, and no rule sees a literal that is in a tensor.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ops import Trait, name_of_op, names_with
from fxprune.running.one_node import run_node
from fxprune.tracing.graph_builder import GraphBuilder, Origin, reads_size
from fxprune.tracing.size_nodes import SizeNodes
from fxprune.tracing.sizes import TracedNumber, call_with_numbers, plain, traced_number

__all__ = ["NumberTensors"]

# More are a table. Not tuned.
_MOST_ENTRIES = 64
# They give entries of their first argument, in other places.
_MOVES = frozenset({
    "getitem", "select", "index_select", "narrow", "unsqueeze", "squeeze", "reshape", "view", "flatten", "expand",
    "permute", "transpose", "t", "flip", "roll", "unbind", "split", "chunk", "gather", "take", "repeat",
    *names_with(Trait.JOIN),
})  # fmt: skip
_COPIES = frozenset(names_with(Trait.COPY))
_COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_ENTRYWISE: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg, "remainder": operator.mod,
    "mod": operator.mod, "floordiv": operator.floordiv, "floor_divide": operator.floordiv, "maximum": max,
    "minimum": min, **_COMPARISONS,
}  # fmt: skip
_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "sum": operator.add, "prod": operator.mul, "any": operator.or_, "all": operator.and_,
}  # fmt: skip


class NumberTensors:
    """The entries of tensors of whole numbers, each a number that knows how it is computed."""

    def __init__(self, builder: GraphBuilder, sizes: SizeNodes, real_value: Callable[[fx.Node], Any]) -> None:
        """
        Args:
            builder: of the graph.
            sizes: makes the numbers.
            real_value: the real value of a node that is the same in all calls.
        """
        self._builder = builder
        self._sizes = sizes
        self._real_value = real_value
        self._numbers: list[Any] = []
        # For each tensor the places of its entries among the numbers, and None where they are not known.
        self._places: dict[fx.Node, Any] = {}

    def entries(self, nodes: Iterable[fx.Node]) -> list[Any] | None:
        """The entries of the last of these nodes, or None where they are not known.

        Args:
            nodes: that it is computed from, in their order, and itself.
        """
        places = None
        for node in nodes:
            if node not in self._places:
                try:
                    self._places[node] = self._find(node)
                except (_UnknownError, ZeroDivisionError):
                    self._places[node] = None
            places = self._places[node]
        return [self._numbers[place] for place in places.flatten().tolist()] if isinstance(places, Tensor) else None

    def rely_on(self, truth: Any, outcome: bool) -> None:
        """From here on the graph relies on the outcome of comparisons, which is the truth of an entry."""
        if not isinstance(truth, TracedNumber):
            return
        # One of them decides, or each does.
        decides = {operator.or_: True, operator.and_: False}.get(truth.function)
        if decides is None:
            self._sizes.guard(truth.function, truth.operands, outcome)
            return
        deciding = [operand for operand in truth.operands if bool(plain(operand)) == outcome]
        # A constant, if there is one.
        deciding.sort(key=lambda operand: isinstance(operand, TracedNumber))
        for operand in deciding[:1] if outcome == decides else deciding:
            self.rely_on(operand, outcome)

    def _find(self, node: fx.Node) -> Any:
        value, origin = node.meta["value"], self._builder.origin[node]
        if type(value) is int:
            return self._keep([self._sizes.number_of(node, value)])[0]
        if origin == Origin.INPUTS or not all(map(_is_small, value if isinstance(value, tuple) else (value,))):
            raise _UnknownError
        if origin == Origin.CONSTANTS and isinstance(value, Tensor):
            real = self._real_value(node)
            return self._keep(real.flatten().tolist()).reshape(real.shape)
        if node.op not in ("call_function", "call_method"):
            raise _UnknownError
        found = self._computed(node, name_of_op(node.target))
        # Not so where the result has another type, as `x.view(torch.int32)`.
        if isinstance(value, Tensor) and (found.dtype is not torch.int64 or found.shape != value.shape):
            raise _UnknownError
        return found

    def _computed(self, node: fx.Node, name: str) -> Any:
        """The places of the entries that an op gives."""
        is_truth = getattr(node.meta["value"], "dtype", None) is torch.bool
        if name in ("tensor", "as_tensor"):
            return self._given(node.args[0])
        if name in _MOVES:
            first: Any = node.args[0]
            given = [*map(self._given, first)] if isinstance(first, (tuple, list)) else self._places.get(first)
            rest, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), self._constant)
            if given is None:
                raise _UnknownError
            return run_node(node, (given, *rest), kwargs)
        if name in _COPIES and is_truth == _is_truth(node.args[0]):
            return self._given(node.args[0])
        function = _entrywise(name, node.kwargs)
        if function is not None and is_truth == (name in _COMPARISONS):
            operands = torch.broadcast_tensors(*map(self._given, node.args))  # type: ignore[no-untyped-call]
            rows = zip(*(operand.flatten().tolist() for operand in operands), strict=True)
            entries = [_call(function, tuple(self._numbers[place] for place in row)) for row in rows]
            return self._keep(entries).reshape(operands[0].shape)
        if name in _REDUCTIONS and len(node.args) == 1 and not node.kwargs and is_truth <= _is_truth(node.args[0]):
            entries = [self._numbers[place] for place in self._given(node.args[0]).flatten().tolist()]
            combined = functools.reduce(lambda one, other: _call(_REDUCTIONS[name], (one, other)), entries)
            return self._keep([combined])[0]
        raise _UnknownError

    def _given(self, arg: Any) -> Tensor:
        """The places of the entries of an argument."""
        if isinstance(arg, (tuple, list)):
            return torch.stack([self._given(item) for item in arg])
        places = self._keep([arg])[0] if isinstance(arg, int) else self._places.get(arg)
        if not isinstance(places, Tensor):
            raise _UnknownError
        return places

    def _constant(self, node: fx.Node) -> Any:
        if self._builder.origin[node] != Origin.CONSTANTS:
            raise _UnknownError
        return self._real_value(node)

    def _keep(self, numbers: list[Any]) -> Tensor:
        self._numbers.extend(numbers)
        return torch.arange(len(self._numbers) - len(numbers), len(self._numbers))


class _UnknownError(Exception):
    """How the entries of a tensor are computed is not known."""


def _entrywise(name: str, kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    if name in ("div", "divide") and kwargs == {"rounding_mode": "trunc"}:
        return _truncated_quotient
    if name in ("div", "divide") and kwargs == {"rounding_mode": "floor"}:
        return operator.floordiv
    return None if kwargs else _ENTRYWISE.get(name)


def _truncated_quotient(a: Any, b: Any) -> Any:
    """The quotient of numbers that are not negative, whatever the sizes are."""
    if not (_is_natural(a) and _is_natural(b)):
        raise _UnknownError
    return call_with_numbers(operator.floordiv, (a, b))


def _is_natural(number: Any) -> bool:
    if not isinstance(number, TracedNumber):
        return bool(number >= 0)
    if number.cached is not None and reads_size(number.cached):
        return True
    return number.function in _NATURAL and all(map(_is_natural, number.operands))


_NATURAL = (operator.add, operator.mul, operator.floordiv, operator.mod, max, min)


def _is_small(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.numel() > _MOST_ENTRIES:
        return False
    return value.numel() > 0 and value.dtype in (torch.int64, torch.int32, torch.bool)


def _is_truth(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and arg.meta["value"].dtype is torch.bool


def _call(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """`function(*operands)`; a truth is a number here, which nothing relies on yet."""
    if function is _truncated_quotient:
        return function(*operands)
    if function not in _COMPARISONS.values():
        return call_with_numbers(function, operands)
    outcome = int(function(*map(plain, operands)))
    traced = next((operand for operand in operands if isinstance(operand, TracedNumber)), None)
    return outcome if traced is None else traced_number(traced.nodes, function, operands, outcome)

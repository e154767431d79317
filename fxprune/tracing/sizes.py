"""Numbers that know how they were computed: what `x.shape[0] // 2` is while a model is traced.

They are ints and floats, so that the model's code works as always. Since a comparison is nearly always a branch, it
becomes a guard of the graph.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx

from fxprune.tracing.loop_watch import is_iterated
from fxprune.tracing.repeated import Repeated
from fxprune.tracing.user_code import user_frame

__all__ = [
    "NumberNodes", "StaleSize", "StandIn", "TracedFloat", "TracedInt", "TracedNumber", "TracedPieces",
    "ValueFloat", "call_with_numbers", "number_of_sizes", "plain", "read_size", "traced_number", "untraced_type",
]  # fmt: skip


class NumberNodes(Protocol):
    """What makes the nodes of numbers, and their guards."""

    @property
    def active(self) -> bool:
        """Whether the run of the model goes on."""

    def number_node(self, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> fx.Node:
        """The node that computes a number."""

    def guard(self, function: Callable[..., Any], operands: tuple[Any, ...], traced: Any) -> None:
        """From here on the graph relies on `function(*operands)` being `traced`."""

    def loop(self, count: TracedInt, start: int, item: Callable[[TracedInt], Any] = ...) -> Iterator[Any]:
        """The steps of a loop from `start` on, or an item for each."""

    def compare(self, function: Callable[..., Any], operands: tuple[Any, ...], outcome: bool) -> bool:
        """What the model's code is told of a comparison: the outcome, on which the graph then relies, or the other."""

    def fills(self, remainder: TracedNumber, multiple: int) -> bool:
        """Whether `multiple - remainder` is to be nothing where the remainder is."""

    def from_end(self, node: fx.Node, value: torch.Tensor, index: int | fx.Node) -> torch.Tensor:
        """A piece of what a node gives, by its negative index, or by that of a step."""


class TracedNumber:
    """`function(*operands)`, computed by a node once the graph needs it."""

    nodes: NumberNodes
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    cached: fx.Node | None

    def node(self) -> fx.Node:
        """The node that computes this number."""
        if self.cached is None:
            self.cached = self.nodes.number_node(self.function, self.operands, plain(self))
        return self.cached

    def as_traced(self) -> Any:
        """The number without its history, where that cannot be kept; the graph will refuse any other number."""
        value = plain(self)
        self.nodes.guard(operator.pos, (self,), value)
        return value

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """What a function of numpy gives for it."""
        function = _AS_NUMPY.get(ufunc.__name__)
        if function is not None and method == "__call__" and not options and all(map(_is_number, inputs)):
            number = call_with_numbers(function, tuple(x.item() if isinstance(x, np.generic) else x for x in inputs))
            return call_with_numbers(float, (number,)) if function in _WHOLE else number
        numbers = (number.as_traced() if isinstance(number, TracedNumber) else number for number in inputs)
        return getattr(ufunc, method)(*numbers, **options)

    def astype(self, kind: Any) -> Any:
        """The number as another type; numbers of numpy have this method."""
        kind = np.dtype(untraced_type(kind)).type
        function = int if issubclass(kind, np.integer) else float if issubclass(kind, np.floating) else None
        return kind(self.as_traced()) if function is None else call_with_numbers(function, (self,))


# Their results are whole numbers, which numpy gives as floats.
_WHOLE = (math.ceil, math.floor, math.trunc, round)
_AS_NUMPY: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (math.sqrt, math.log, math.log2, math.log10, math.exp, *_WHOLE)},
    "rint": round,
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "maximum": max, "minimum": min,
}  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, np.generic) and isinstance(value.item(), (int, float)))


class StaleSize(int):
    """A size that no tensor has, in place of the one that a model remembers; it notes what it is used for.

    Attributes:
        compared: whether it was compared with the size of a tensor.
        computed_with: whether something was computed from it.
    """

    compared: bool
    computed_with: bool

    def __new__(cls) -> StaleSize:
        """A new one."""
        # As a size, torch refuses it.
        made = super().__new__(cls, -(2**40))
        made.compared = made.computed_with = False
        return made

    __hash__ = int.__hash__


def _noting(name: str, mark: str) -> Callable[..., Any]:
    method = getattr(int, name)

    def noting(self: Any, *others: Any) -> Any:
        setattr(self, mark, True)
        return method(self, *others)

    return noting


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(StaleSize, f"__{_name}__", _noting(f"__{_name}__", "compared"))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "radd", "rsub", "rmul", "rfloordiv"):
    setattr(StaleSize, f"__{_name}__", _noting(f"__{_name}__", "computed_with"))


class TracedInt(TracedNumber, int):
    """An int that depends on the size of a tensor."""

    __hash__ = int.__hash__

    def __int__(self) -> int:
        """For functions that the tracer does not see."""
        whole: int = self.as_traced()
        return whole

    def __float__(self) -> float:
        """For functions that the tracer does not see."""
        return float(self.as_traced())

    def __invert__(self) -> int:
        """`~self`."""
        inverted: int = call_with_numbers(operator.invert, (self,))
        return inverted


class TracedFloat(TracedNumber, float):
    """A float that depends on the size of a tensor."""

    __hash__ = float.__hash__

    def __int__(self) -> int:
        """For functions that the tracer does not see."""
        return int(self.as_traced())

    def is_integer(self) -> bool:
        """Whether it is a whole number."""
        whole: bool = self.as_traced().is_integer()
        return whole


class ValueFloat(TracedFloat):
    """A float that the values of the input decide: the graph computes with it, and Python sees that it is no number.

    Attributes:
        error: raised where the model's code follows it.
    """

    error: Exception

    def as_traced(self) -> Any:
        """What the model's code needs to know of it."""
        raise self.error

    @staticmethod
    def of(nodes: NumberNodes, node: fx.Node, error: Exception) -> ValueFloat:
        """The float that a node gives."""
        made = ValueFloat(math.nan)
        made.nodes, made.function, made.operands, made.cached, made.error = nodes, operator.pos, (), node, error
        return made


def read_size(node: fx.Node, dim: int) -> int:
    """Marks a traced number that is the size of a node's tensor in one dimension; it is never called."""
    raise AssertionError("becomes a `size` node")


def number_of_sizes(*sizes: int) -> int:
    """How many of these sizes are not 1: what is left of a tensor's dimensions by `squeeze()`."""
    return sum(size != 1 for size in sizes)


def plain(value: Any) -> Any:
    """The number without its history."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def traced_number(nodes: NumberNodes, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> Any:
    """`value`, the result of `function(*operands)`, as a number that remembers that."""
    kind = {int: TracedInt, float: TracedFloat}.get(type(value))
    if kind is None:
        return value
    number = kind(value)
    number.nodes, number.function, number.operands, number.cached = nodes, function, operands, None
    return number


def call_with_numbers(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """`function(*operands)`, as a traced number where an operand is one."""
    unknown = next((operand for operand in operands if isinstance(operand, ValueFloat)), None)
    if unknown is not None:
        return _of_unknown(unknown, function, operands)
    value = function(*(_plain_nested(operand) for operand in operands))
    for stale in operands:
        if isinstance(stale, StaleSize):
            stale.computed_with = True
    for operand in operands:
        for number in operand if isinstance(operand, (tuple, list)) else (operand,):
            if isinstance(number, TracedNumber) and number.nodes.active:
                if isinstance(value, bool):
                    number.nodes.guard(function, operands, value)
                return traced_number(number.nodes, function, operands, value)
    return value


def _of_unknown(unknown: ValueFloat, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    try:
        value = function(*map(plain, operands))
    except (ArithmeticError, ValueError):
        value = None
    if type(value) is not float:
        # A whole number may be a size, an index or the end of a loop.
        raise unknown.error
    return ValueFloat.of(unknown.nodes, unknown.nodes.number_node(function, operands, value), unknown.error)


def _plain_nested(value: Any) -> Any:
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else plain(value)


def _arithmetic(name: str, function: Callable[..., Any], reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, (list, tuple, str)) and function is operator.mul:
            return Repeated.of(other, self, plain(self)) if type(other) is list else other * self.as_traced()
        if not isinstance(other, (int, float)):
            return NotImplemented
        made = call_with_numbers(function, (other, self) if reflected else (self, other))
        of_remainder = reflected and function is operator.sub and self.function is operator.mod
        return made % other if of_remainder and self.nodes.fills(self, other) else made

    method.__name__ = name
    return method


def _comparison(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        if isinstance(unknown := other if isinstance(other, ValueFloat) else self, ValueFloat):
            raise unknown.error
        outcome = function(plain(self), plain(other))
        if isinstance(other, StaleSize):
            # No size of a tensor changes this.
            return outcome
        return self.nodes.compare(function, (self, other), outcome)

    return method


for _class in (TracedInt, TracedFloat):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor"):
        if _class is TracedInt or hasattr(float, f"__{_name}__"):
            _function = getattr(operator, _name)
            _name = _name.removesuffix("_")
            setattr(_class, f"__{_name}__", _arithmetic(f"__{_name}__", _function, False))
            setattr(_class, f"__r{_name}__", _arithmetic(f"__r{_name}__", _function, True))
    for _name, _function in {
        "neg": operator.neg, "abs": abs, "round": round, "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc,
    }.items():  # fmt: skip
        setattr(_class, f"__{_name}__", functools.partialmethod(
            lambda self, *digits, function: call_with_numbers(function, (self, *digits)), function=_function
        ))  # fmt: skip
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_class, f"__{_name}__", _comparison(getattr(operator, _name)))
    for _name, _method in {
        "pos": lambda self: self, "bool": lambda self: self != 0,
        "divmod": lambda self, other: (self // other, self % other),
        "rdivmod": lambda self, other: (other // self, other % self),
    }.items():  # fmt: skip
        setattr(_class, f"__{_name}__", _method)


class TracedPieces(tuple[torch.Tensor, ...]):
    """The pieces that a tensor is cut into, where their number depends on its size.

    Taking one of them by its index works at other sizes. Going through all of them ties the graph to their number.
    """

    node: fx.Node
    number: TracedInt
    rolls: bool

    @staticmethod
    def of(pieces: tuple[torch.Tensor, ...], node: fx.Node, count: TracedInt, rolls: bool) -> TracedPieces:
        """The pieces that a node gives, `count` of them; `rolls` if a loop may go through more or fewer."""
        made = TracedPieces(pieces)
        made.node, made.number, made.rolls = node, count, rolls
        return made

    def untraced(self) -> tuple[torch.Tensor, ...]:
        """All of them, for calls that get their node as a whole."""
        return tuple(super().__iter__())

    def __iter__(self) -> Any:
        """Go through all of them."""
        frame = user_frame()
        if self.rolls and self.number.nodes.active and frame is not None and is_iterated(frame):
            return self.number.nodes.loop(self.number, 0, self._of_step)
        self.number.as_traced()
        return super().__iter__()

    def _of_step(self, step: TracedInt) -> torch.Tensor:
        return self.number.nodes.from_end(self.node, super().__getitem__(plain(step)), step.node())

    def __reversed__(self) -> Any:
        """Go through all of them, the last first."""
        return reversed(tuple(self))

    def __getitem__(self, index: Any) -> Any:
        """One of them, or those of a slice."""
        if isinstance(index, slice):
            return tuple(self)[index]
        if isinstance(index, TracedNumber):
            index = index.as_traced()
        found = super().__getitem__(index)
        return found if index >= 0 else self.number.nodes.from_end(self.node, found, index)

    def __add__(self, other: Any) -> Any:
        """All of them and others."""
        return tuple(self) + tuple(other)

    def __radd__(self, other: Any) -> Any:
        """Others and all of them."""
        return tuple(other) + tuple(self)


class StandIn(type):
    """The type of a class that stands for a builtin one, and for `isinstance` is that one."""

    builtin: type

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.builtin)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.builtin)


def untraced_type(value: Any) -> Any:
    """The builtin class that a stand-in stands for; anything else as it is."""
    return value.builtin if isinstance(value, StandIn) else value

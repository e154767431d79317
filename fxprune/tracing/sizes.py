"""Numbers that know how they were computed: what `x.shape[0] // 2` is while a model is traced."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx

__all__ = [
    "BUILTINS", "NUMBER_FUNCTIONS", "NumberNodes", "TracedFloat", "TracedInt", "TracedNumber",
    "TracedPieces", "TracedSize", "index", "is_refused_type", "plain", "read_size", "traced_number", "untraced_type",
]  # fmt: skip


class NumberNodes(Protocol):
    """What makes the graph, as far as numbers have to do with it."""

    active: bool

    def number_node(self, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> fx.Node:
        """The node that computes a number."""

    def guard(self, function: Callable[..., Any], operands: tuple[Any, ...], traced: Any) -> None:
        """From here on it is supposed that `function(*operands)` is `traced`."""

    def from_behind(self, node: fx.Node, value: torch.Tensor, index: int) -> Any:
        """One of the tensors that a node gives, by its number from behind."""


class TracedNumber:
    """`function(*operands)`, computed by a node once a graph needs it."""

    recorder: NumberNodes
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    cached: fx.Node | None

    def node(self) -> fx.Node:
        """The node that computes this number."""
        if self.cached is None:
            self.cached = self.recorder.number_node(self.function, self.operands, plain(self))
        return self.cached

    def as_traced(self) -> Any:
        """The number without its history, where it cannot be kept; the graph will refuse another."""
        value = plain(self)
        self.recorder.guard(operator.pos, (self,), value)
        return value

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """What numpy computes of it."""
        function = _AS_NUMPY.get(ufunc.__name__)
        if function is not None and method == "__call__" and not options and all(map(_is_number, inputs)):
            number = _call_with_numbers(function, tuple(x.item() if isinstance(x, np.generic) else x for x in inputs))
            return _call_with_numbers(float, (number,)) if function in _WHOLE else number
        numbers = (number.as_traced() if isinstance(number, TracedNumber) else number for number in inputs)
        return getattr(ufunc, method)(*numbers, **options)

    def astype(self, kind: Any) -> Any:
        """The number as another type, as those have it that numpy computes."""
        kind = np.dtype(untraced_type(kind)).type
        function = int if issubclass(kind, np.integer) else float if issubclass(kind, np.floating) else None
        return kind(self.as_traced()) if function is None else _call_with_numbers(function, (self,))


# Of numpy they are floats.
_WHOLE = (math.ceil, math.floor, math.trunc, round)
_AS_NUMPY: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (math.sqrt, math.log, math.log2, math.log10, math.exp, *_WHOLE)},
    "rint": round,
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "maximum": max, "minimum": min,
}  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, np.generic) and isinstance(value.item(), (int, float)))


class TracedInt(TracedNumber, int):
    """An int that depends on the size of a tensor."""

    __hash__ = int.__hash__

    def __int__(self) -> int:
        """For functions that torch and the model's files do not show us."""
        whole: int = self.as_traced()
        return whole

    def __float__(self) -> float:
        """Likewise."""
        return float(self.as_traced())

    def __invert__(self) -> int:
        """All bits the other way."""
        inverted: int = _call_with_numbers(operator.invert, (self,))
        return inverted


class TracedFloat(TracedNumber, float):
    """A float that depends on the size of a tensor."""

    __hash__ = float.__hash__

    def __int__(self) -> int:
        """For functions that torch and the model's files do not show us."""
        return int(self.as_traced())

    def is_integer(self) -> bool:
        """Whether there is nothing after the point."""
        whole: bool = self.as_traced().is_integer()
        return whole


def read_size(node: fx.Node, dim: int) -> int:
    """The function of a number that is the size of a tensor in one dimension."""
    raise AssertionError("becomes a `size` node")


def plain(value: Any) -> Any:
    """The number without its history."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def traced_number(recorder: NumberNodes, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> Any:
    """`value`, the result of `function(*operands)`, as a number that remembers it."""
    kind = {int: TracedInt, float: TracedFloat}.get(type(value))
    if kind is None:
        return value
    number = kind(value)
    number.recorder, number.function, number.operands, number.cached = recorder, function, operands, None
    return number


def _call_with_numbers(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """`function(*operands)`, remembered where an operand is a traced number."""
    value = function(*(_plain_nested(operand) for operand in operands))
    for operand in operands:
        for number in operand if isinstance(operand, (tuple, list)) else (operand,):
            if isinstance(number, TracedNumber) and number.recorder.active:
                if isinstance(value, bool):
                    number.recorder.guard(function, operands, value)
                return traced_number(number.recorder, function, operands, value)
    return value


def _plain_nested(value: Any) -> Any:
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else plain(value)


def _arithmetic(name: str, function: Callable[..., Any], reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, (list, tuple, str)) and function is operator.mul:
            return other * self.as_traced()
        if not isinstance(other, (int, float)):
            return NotImplemented
        return _call_with_numbers(function, (other, self) if reflected else (self, other))

    method.__name__ = name
    return method


def _comparison(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """A comparison is nearly always a branch: the graph will refuse sizes that go the other way."""

    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        outcome = function(plain(self), plain(other))
        self.recorder.guard(function, (self, other), outcome)
        return outcome

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
            lambda self, *digits, function: _call_with_numbers(function, (self, *digits)), function=_function
        ))  # fmt: skip
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_class, f"__{_name}__", _comparison(getattr(operator, _name)))
    for _name, _method in {
        "pos": lambda self: self, "bool": lambda self: self != 0,
        "divmod": lambda self, other: (self // other, self % other),
        "rdivmod": lambda self, other: (other // self, other % self),
    }.items():  # fmt: skip
        setattr(_class, f"__{_name}__", _method)


class TracedSize(tuple[int, ...]):
    """What `x.shape` is while a model is traced: `torch.Size` cannot be derived from, and its `numel()` forgets."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """As `isinstance` sees it."""
        return torch.Size

    def numel(self) -> int:
        """The product of the sizes, remembered."""
        return functools.reduce(operator.mul, self) if self else 1

    def __getitem__(self, index: Any) -> Any:
        """A size, or the sizes of a slice."""
        found = super().__getitem__(index)
        return TracedSize(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        """The sizes followed by others."""
        return TracedSize(super().__add__(other))

    def __repr__(self) -> str:
        """As `torch.Size` is shown."""
        return f"torch.Size({list(self)})"


class TracedPieces(tuple[torch.Tensor, ...]):
    """What a tensor is cut into, when how many pieces there are depends on its size.

    To take one of them keeps the graph free; to go through all does not.
    """

    node: fx.Node
    number: TracedInt

    @staticmethod
    def of(pieces: tuple[torch.Tensor, ...], node: fx.Node, count: TracedInt) -> TracedPieces:
        """The pieces that a node gives, `count` of them."""
        made = TracedPieces(pieces)
        made.node, made.number = node, count
        return made

    def untraced(self) -> tuple[torch.Tensor, ...]:
        """All of them, for torch, which is given the node."""
        return tuple(super().__iter__())

    def __iter__(self) -> Any:
        """All of them."""
        self.number.as_traced()
        return super().__iter__()

    def __reversed__(self) -> Any:
        """All of them, the last first."""
        return reversed(tuple(self))

    def __getitem__(self, index: Any) -> Any:
        """One, which other sizes have too; or some."""
        if isinstance(index, slice):
            return tuple(self)[index]
        if isinstance(index, TracedNumber):
            index = index.as_traced()
        found = super().__getitem__(index)
        return found if index >= 0 else self.number.recorder.from_behind(self.node, found, index)

    def __add__(self, other: Any) -> Any:
        """All of them and others."""
        return tuple(self) + tuple(other)

    def __radd__(self, other: Any) -> Any:
        """Others and all of them."""
        return tuple(other) + tuple(self)


class _Stands(type):
    """A class that stands for a builtin one, as `isinstance` sees it."""

    builtin: type

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.builtin)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.builtin)


class _TracingInt(int, metaclass=_Stands):
    """Stands for the name `int` in the model's own source files: `int(size / 2)` would forget where it came from."""

    builtin = int

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`int(*args, **kwargs)`, remembered."""
        if len(args) == 1 and isinstance(args[0], TracedNumber):
            return args[0] if isinstance(args[0], TracedInt) else _call_with_numbers(int, args)
        return int(*args, **kwargs)


class _TracingFloat(float, metaclass=_Stands):
    """Stands for the name `float`, likewise."""

    builtin = float

    def __new__(cls, *args: Any) -> Any:
        """`float(*args)`, remembered."""
        if len(args) == 1 and isinstance(args[0], TracedNumber):
            return args[0] if isinstance(args[0], TracedFloat) else _call_with_numbers(float, args)
        return float(*args)


class _TracingRange(metaclass=_Stands):
    """Stands for the name `range`: to go through one that a size gives is what a graph cannot do at other sizes."""

    builtin = range

    def __new__(cls, *args: Any) -> Any:
        """`range(*args)`, for which the graph asks for the sizes of the trace."""
        return range(*(arg.as_traced() if isinstance(arg, TracedNumber) else arg for arg in args))


def is_refused_type(error: BaseException | None) -> bool:
    """Whether torch, asked for `dtype=float`, did not take the class that stands for it."""
    return isinstance(error, TypeError) and _Stands.__name__ in str(error)


def untraced_type(value: Any) -> Any:
    """What a class stands for that the model's code finds under the name of a builtin one; all else as it is."""
    return value.builtin if isinstance(value, _Stands) else value


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        numbers = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        if not kwargs and any(isinstance(number, TracedNumber) for number in numbers):
            return _call_with_numbers(function, args)
        return function(*args, **kwargs)

    return wrapper


def index(value: Any) -> int:
    """`operator.index(value)`, as `nn.ModuleList` calls it: what is looked up is of the size of the trace."""
    return _INDEX(value.as_traced() if isinstance(value, TracedNumber) else value)


_INDEX = operator.index


NUMBER_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    function: _remembering(function) for function in vars(math).values() if isinstance(function, type(math.sqrt))
}


def _length(value: Any) -> int:
    """`len(value)`, remembered where it is a tensor's or that of the pieces of one."""
    if isinstance(value, TracedPieces):
        return value.number
    return value.size(0) if isinstance(value, torch.Tensor) and value.dim() else len(value)


BUILTINS: dict[str, Any] = {
    "int": _TracingInt, "float": _TracingFloat, "range": _TracingRange, "len": _length, "max": _remembering(max),
    "min": _remembering(min),
}  # fmt: skip

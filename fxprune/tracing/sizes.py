"""Numbers that know how they were computed: what `x.shape[0] // 2` is while a model is traced."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from fxprune.tracing.recording import Recorder

__all__ = [
    "BUILTINS", "NUMBER_FUNCTIONS", "TracedFloat", "TracedInt", "TracedNumber", "TracedSize", "TracingInt", "plain",
    "traced_number",
]  # fmt: skip


class TracedNumber:
    """`function(*operands)`, computed by a node once a graph needs it."""

    recorder: Recorder
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    cached: fx.Node | None

    def node(self) -> fx.Node:
        """The node that computes this number."""
        if self.cached is None:
            self.cached = self.recorder.number_node(self.function, self.operands, plain(self))
        return self.cached


class TracedInt(TracedNumber, int):
    """An int that depends on the size of a tensor."""

    __hash__ = int.__hash__


class TracedFloat(TracedNumber, float):
    """A float that depends on the size of a tensor."""

    __hash__ = float.__hash__


def plain(value: Any) -> Any:
    """The number without its history."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def traced_number(recorder: Recorder, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> Any:
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
                return traced_number(number.recorder, function, operands, value)
    return value


def _plain_nested(value: Any) -> Any:
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else plain(value)


def _arithmetic(name: str, function: Callable[..., Any], reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return _call_with_numbers(function, (other, self) if reflected else (self, other))

    method.__name__ = name
    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift"):
    for _class in (TracedInt, TracedFloat):
        setattr(_class, f"__{_name}__", _arithmetic(f"__{_name}__", getattr(operator, _name), False))
        setattr(_class, f"__r{_name}__", _arithmetic(f"__r{_name}__", getattr(operator, _name), True))
for _name, _function in {
    "neg": operator.neg, "abs": abs, "round": round, "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc,
}.items():  # fmt: skip
    for _class in (TracedInt, TracedFloat):
        setattr(_class, f"__{_name}__", functools.partialmethod(
            lambda self, *digits, function: _call_with_numbers(function, (self, *digits)), function=_function
        ))  # fmt: skip


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


class _IntLikeType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class TracingInt(int, metaclass=_IntLikeType):
    """Stands for the name `int` in the model's own source files: `int(size / 2)` would forget where it came from."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`int(*args, **kwargs)`, remembered."""
        if len(args) == 1 and isinstance(args[0], TracedNumber):
            return args[0] if isinstance(args[0], TracedInt) else _call_with_numbers(int, args)
        return int(*args, **kwargs)


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        numbers = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        if not kwargs and any(isinstance(number, TracedNumber) for number in numbers):
            return _call_with_numbers(function, args)
        return function(*args, **kwargs)

    return wrapper


NUMBER_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    function: _remembering(function)
    for function in (
        math.sqrt, math.log, math.log2, math.log10, math.exp, math.pow, math.prod, math.isqrt, math.floor, math.ceil,
    )
}  # fmt: skip


def _length(value: Any) -> int:
    """`len(value)`, remembered where it is a tensor's."""
    return value.size(0) if isinstance(value, torch.Tensor) and value.dim() else len(value)


BUILTINS: dict[str, Any] = {"int": TracingInt, "len": _length, "max": _remembering(max), "min": _remembering(min)}

"""Stand-ins for functions of numbers: Python's own, and those of `math`, `operator` and `numpy`.

While a model is traced, they give traced numbers for traced numbers, or tie the graph to the sizes of the trace.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch

from fxprune.tracing.loop_watch import is_loop
from fxprune.tracing.shapes import TracedSize
from fxprune.tracing.sizes import StandIn, TracedFloat, TracedInt, TracedNumber, TracedPieces, plain, untraced_type
from fxprune.tracing.sizes import call_with_numbers as _call

__all__ = ["BUILTINS", "MATH_FUNCTIONS", "NUMPY_FUNCTIONS", "TIED_ARRAY", "Size", "index", "is_refused_type"]


class _Int(int, metaclass=StandIn):
    """Stands for the name `int` in the model's own source files: `int(size / 2)` would be a plain number."""

    builtin = int

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`int(*args, **kwargs)`, traced."""
        args = _with_items(args)
        if len(args) == 1 and isinstance(args[0], TracedNumber):
            return args[0] if isinstance(args[0], TracedInt) else _call(int, args)
        return int(*args, **kwargs)


class _Float(float, metaclass=StandIn):
    """Stands for the name `float`, likewise."""

    builtin = float

    def __new__(cls, *args: Any) -> Any:
        """`float(*args)`, traced."""
        args = _with_items(args)
        if len(args) == 1 and isinstance(args[0], TracedNumber):
            return args[0] if isinstance(args[0], TracedFloat) else _call(float, args)
        return float(*args)


def _with_items(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The numbers in tensors, which may be traced ones."""
    return tuple(arg.item() if isinstance(arg, torch.Tensor) else arg for arg in args)


class Size(metaclass=StandIn):
    """Stands for the name `torch.Size`: of a tensor of sizes, it would be plain numbers."""

    builtin = torch.Size

    def __new__(cls, sizes: Any = ()) -> Any:
        """`torch.Size(sizes)`, traced."""
        sizes = tuple(sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes)
        sizes = _with_items(sizes)
        return TracedSize(sizes) if any(isinstance(size, TracedNumber) for size in sizes) else _SIZE(sizes)


_SIZE = torch.Size


class _Range(metaclass=StandIn):
    """Stands for the name `range`: the steps of a loop over a size are noted, all else is tied to the size."""

    builtin = range

    def __new__(cls, *args: Any) -> Any:
        """`range(*args)`, or the steps of a loop: also of one over pieces, `for start in range(0, length, size)`."""
        start, count = (0, *args) if len(args) == 1 else args if len(args) == 2 else (None, None)
        if type(start) is int and isinstance(count, TracedInt) and count.nodes.active and is_loop(sys._getframe(1)):
            return count.nodes.loop(count, start)
        if len(args) == 3 and type(args[0]) is int and plain(args[2]) > 0 and is_loop(sys._getframe(1)):
            start, stop, step = args
            steps = (stop - start + step - 1) // step
            if isinstance(steps, TracedInt) and steps.nodes.active:
                return steps.nodes.loop(steps, 0, lambda k: start + k * step)
        return range(*map(_as_traced, args))


def broadcast_shapes(*shapes: Any) -> Any:
    """`torch.broadcast_shapes(*shapes)`, traced: torch follows each size in a branch."""
    if not any(isinstance(size, TracedNumber) for shape in shapes if isinstance(shape, tuple) for size in shape):
        return _BROADCAST_SHAPES(*shapes)  # type: ignore[no-untyped-call]
    ends = itertools.zip_longest(
        *(reversed(shape) if isinstance(shape, tuple) else [shape] for shape in shapes), fillvalue=1
    )
    return TracedSize(reversed([_call(broadcast_size, sizes) for sizes in ends]))


def broadcast_size(*sizes: int) -> int:
    """The size to which sizes of 1 are repeated beside these."""
    return next((size for size in sizes if size != 1), 1)


_BROADCAST_SHAPES = torch.broadcast_shapes


def is_refused_type(error: BaseException | None) -> bool:
    """Whether torch, asked for `dtype=float`, refused the class that stands for it, or an array of traced numbers."""
    names = (StandIn.__name__, TracedArray.__name__, "numpy.object_")
    return isinstance(error, TypeError) and any(name in str(error) for name in names)


def _as_traced(value: Any) -> Any:
    if type(value) in (tuple, list, TracedSize):
        return tuple(map(_as_traced, value)) if isinstance(value, tuple) else [*map(_as_traced, value)]
    return value.as_traced() if isinstance(value, TracedNumber) else value


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives a traced number for traced numbers."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        numbers = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        if not kwargs and any(isinstance(number, TracedNumber) for number in numbers):
            return _call(function, args)
        return function(*args, **kwargs)

    return wrapper


def _tied(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes a table, which ties the graph to the sizes of the trace."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_as_traced, args), **{name: _as_traced(value) for name, value in kwargs.items()})

    return wrapper


class TracedArray(np.ndarray[Any, Any]):
    """Traced numbers in an array of numpy, that is computed with entry by entry, and compared."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Arithmetic gives traced numbers; all else is tied to the sizes of the trace."""
        if method == "__call__" and not options and ufunc.__name__ in _ENTRY_BY_ENTRY:
            made = ufunc(*(each.view(np.ndarray) if isinstance(each, TracedArray) else each for each in inputs))
            return made.view(TracedArray) if isinstance(made, np.ndarray) and made.dtype.hasobject else made
        options = {name: _as_traced_array(value, written=name == "out") for name, value in options.items()}
        return getattr(ufunc, method)(*map(_as_traced_array, inputs), **options)

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        """The numbers as others: whole ones, or floats."""
        if not self.dtype.hasobject:
            return super().astype(untraced_type(dtype), *args, **kwargs)
        kind = np.dtype(untraced_type(dtype)).type
        return _in_array([n.astype(kind) if isinstance(n, TracedNumber) else kind(n) for n in self.view(np.ndarray)])

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Functions that make something else of it are tied to the sizes of the trace."""
        return function(*map(_as_traced_array, args), **{name: _as_traced_array(each) for name, each in kwargs.items()})


_ENTRY_BY_ENTRY = frozenset({
    "add", "subtract", "multiply", "divide", "true_divide", "floor_divide", "remainder", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal",
})  # fmt: skip


def _as_traced_array(value: Any, *, written: bool = False) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_as_traced_array(each, written=written) for each in value)
    if not isinstance(value, TracedArray):
        return value
    entries = value.view(np.ndarray)
    return entries if written or not entries.dtype.hasobject else np.array(_as_traced(entries.tolist()))


def _array(*args: Any, **kwargs: Any) -> Any:
    numbers = args[0] if len(args) == 1 and not kwargs and type(args[0]) in (tuple, list, TracedSize) else ()
    if not any(isinstance(number, TracedNumber) for number in numbers) or not all(map(_is_whole, numbers)):
        return TIED_ARRAY(*args, **kwargs)
    return _in_array(numbers)


def _in_array(numbers: Sequence[Any]) -> TracedArray:
    made = np.empty(len(numbers), dtype=object)
    made[:] = numbers
    return made.view(TracedArray)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# For models that numpy or torch refuses arrays of traced numbers in.
TIED_ARRAY = _tied(np.array)


def index(value: Any) -> int:
    """`operator.index(value)`, as `nn.ModuleList` calls it; ties the graph to the size that is looked up."""
    return _INDEX(_as_traced(value))


_INDEX = operator.index


def _length(value: Any) -> int:
    """`len(value)`, traced for a tensor and for the pieces of one."""
    if isinstance(value, TracedPieces):
        return value.number if value.rolls else value.number.as_traced()
    if type(value) in (list, tuple) and (note := _noting_length()):
        note(value)
    if not isinstance(value, torch.Tensor):
        return len(value)
    with torch._C.DisableTorchFunction():
        single = not value.dim()
    return len(value) if single else value.size(0)


def _noting_length() -> Callable[[Any], None] | None:
    """What the mode that records a model does where its code asks for the length of a list."""
    mode: Any = cast(Any, torch.overrides)._get_current_function_mode()
    return getattr(mode, "note_length", None)


def _product(a: Any, *args: Any, **kwargs: Any) -> Any:
    if not args and not kwargs and isinstance(a, (tuple, list)) and any(isinstance(x, TracedNumber) for x in a):
        return functools.reduce(operator.mul, a, 1)
    return _PRODUCT(a, *args, **kwargs)


_PRODUCT = np.prod

# By the name that the model's own source files use.
BUILTINS: dict[str, Any] = {
    "int": _Int, "float": _Float, "range": _Range, "len": _length, "max": _traced(max), "min": _traced(min),
}  # fmt: skip
# By the function of `math`.
MATH_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    function: _traced(function) for function in vars(math).values() if isinstance(function, type(math.sqrt))
}
# By name. Numpy itself sees no more than a number in a traced one.
NUMPY_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "prod": _product,
    "array": _array,
    **{name: _tied(getattr(np, name)) for name in (
        "arange", "linspace", "logspace", "zeros", "ones", "empty", "full", "eye", "asarray", "tile",
        "repeat", "sum", "cumsum", "max", "min", "mean",
    )},
}  # fmt: skip

"""Functions of numpy while a model is traced: numpy itself sees no more than a number in a traced one."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from fxprune.tracing.sizes import TracedNumber, TracedSize

__all__ = ["NUMPY_FUNCTIONS"]


def _supposing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes a table, for which the graph asks for the sizes of the trace."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*map(_as_traced, args), **{name: _as_traced(value) for name, value in kwargs.items()})

    return wrapper


def _as_traced(value: Any) -> Any:
    if type(value) in (tuple, list, TracedSize):
        return tuple(map(_as_traced, value)) if isinstance(value, tuple) else [*map(_as_traced, value)]
    return value.as_traced() if isinstance(value, TracedNumber) else value


def _of_numpy() -> dict[str, Callable[..., Any]]:
    """What takes their place, by name."""
    product = np.prod

    def prod(a: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs and isinstance(a, (tuple, list)) and any(isinstance(x, TracedNumber) for x in a):
            return functools.reduce(operator.mul, a, 1)
        return product(a, *args, **kwargs)

    tables = (
        *("arange", "linspace", "logspace", "zeros", "ones", "empty", "full", "eye", "array", "asarray", "tile"),
        *("repeat", "sum", "cumsum", "max", "min", "mean"),
    )
    return {"prod": prod, **{name: _supposing(getattr(np, name)) for name in tables}}


NUMPY_FUNCTIONS = _of_numpy()

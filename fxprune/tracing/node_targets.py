"""The target of a node for a call of a torch function: an operator, a method or a function, each under one name."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_reflected", "node_target"]

# Tensor methods that have an operator are recorded as the operator, which is what users of torch.fx look for.
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "matmul": operator.matmul, "neg": operator.neg, "add_": operator.iadd, "sub_": operator.isub,
    "mul_": operator.imul, "div_": operator.itruediv, "eq": operator.eq, "__eq__": operator.eq, "ne": operator.ne,
    "__ne__": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
    "__floordiv__": operator.floordiv, "remainder": operator.mod, "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
}  # fmt: skip
_REFLECTED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod, "__rmatmul__": operator.matmul,
}  # fmt: skip
_UNARY = frozenset({"neg", "__invert__"})
# Functions of torch that are not written in Python also take numpy's names of these arguments.
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim"}
# Functions with an argument `axis` of their own.
_WITH_AXIS = frozenset({"quantize_per_channel", "fake_quantize_per_channel_affine"})


def is_reflected(func: Any, target: Any) -> bool:
    """Whether `target`, recorded for a function as `__rsub__`, takes the operands in reverse order."""
    return target in _REFLECTED.values() and func.__name__ in _REFLECTED


@functools.cache
def _canonical(func: Any) -> tuple[str, Any]:
    """The op and target of a torch function; torch has several objects for some functions, under one name."""
    name = func.__name__
    if name == "__get__":
        return "attribute", func.__self__.__name__
    # Torch's list is incomplete: it has no `unflatten` in 2.6.
    if torch.overrides.is_tensor_method_or_property(func) or getattr(Tensor, name, None) is func:
        return "call_method", name
    for namespace in (torch, nn.functional):
        if getattr(namespace, name, None) == func:
            return "call_function", getattr(namespace, name)
    return "call_function", func


def node_target(func: Any, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """Op, target, arguments and keyword arguments of the node for a call of a torch function."""
    if not isinstance(func, FunctionType) and func.__name__ not in _WITH_AXIS:
        kwargs = {_NUMPY_NAMES.get(name, name): value for name, value in kwargs.items()}
    if kwargs.get("out", func) is None:
        kwargs = {name: value for name, value in kwargs.items() if name != "out"}
    op, target = _canonical(func)
    if op == "attribute":
        return "call_function", getattr, (args[0], target), kwargs
    operands = 1 if target in _UNARY else 3 if target == "__setitem__" else 2
    if op == "call_method" and not kwargs and len(args) == operands:
        if target in _OPERATORS:
            return "call_function", _OPERATORS[target], args, kwargs
        if target in _REFLECTED:
            return "call_function", _REFLECTED[target], (args[1], args[0]), kwargs
    return op, target, args, kwargs

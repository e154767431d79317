"""Types that the code reads from tensors, and their limits, as `torch.finfo(x.dtype).min`: a graph reads them, too."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fxprune.tracing.sizes import StandIn

__all__ = ["CallPlace", "FInfo", "IInfo", "Limits", "TypeUse", "limit_of", "reads_dtype_at"]


# Code that calls a function and where in it, of the innermost functions of the model.
CallPlace: TypeAlias = "tuple[tuple[CodeType, int], ...]"


@dataclass(frozen=True)
class TypeUse:
    """A type that the model's code gives a function.

    Attributes:
        dtype: the type.
        reader: the code that has read it from a tensor; None where the code names it.
        certain: whether that is known.
        of_limits: whether the function gives the limits of the type.
        place: where the code does so.
    """

    dtype: torch.dtype
    reader: CodeType | None
    certain: bool
    of_limits: bool
    place: CallPlace


def limit_of(tensor: Tensor, name: str) -> Any:
    """A limit of the type of a tensor: "min", "max", "eps", or another attribute of `torch.finfo` or `torch.iinfo`."""
    if has_torch_function_unary(tensor):
        # A traced graph that is traced again.
        return handle_torch_function(limit_of, (tensor,), tensor, name)
    return _LIMITS[tensor.dtype][name]


def _numbers(limits: Any) -> dict[str, Any]:
    values = {name: getattr(limits, name) for name in dir(limits)}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Torch.compile knows dicts, and not `torch.finfo` of a type that it computes.
_LIMITS = {dtype: _numbers(torch.finfo(dtype)) for dtype in _FLOATS} | {
    dtype: _numbers(torch.iinfo(dtype)) for dtype in _WHOLE
}


class Limits:
    """Stands for the limits of a type; its numbers know which tensor has that type."""

    def __init__(self, found: Any, number: Callable[[str, Any], Any]) -> None:
        """
        Args:
            found: the limits.
            number: what the model's code gets for the name and the value of one of them.
        """
        self._found, self._number = found, number

    def __getattr__(self, name: str) -> Any:
        """One of the limits."""
        value = getattr(self._found, name)
        return self._number(name, value) if isinstance(value, (int, float)) else value


def _limits(kind: type, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Any:
    """The limits of a type, which the mode that records a model may know by the tensor that it was read from."""
    found = kind(*args, **kwargs)
    dtype = next(iter((*args, *kwargs.values())), None)
    mode: Any = cast(Any, torch.overrides)._get_current_function_mode()
    note = getattr(mode, "note_limits", None)
    return found if note is None or dtype not in _LIMITS else note(found, dtype, frame)


class FInfo(metaclass=StandIn):
    """Stands for `torch.finfo` while a model is traced."""

    builtin = torch.finfo

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`torch.finfo(dtype)`, whose numbers are traced."""
        return _limits(cls.builtin, args, kwargs, sys._getframe(1))


class IInfo(metaclass=StandIn):
    """Stands for `torch.iinfo`, likewise."""

    builtin = torch.iinfo

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`torch.iinfo(dtype)`, whose numbers are traced."""
        return _limits(cls.builtin, args, kwargs, sys._getframe(1))


def reads_dtype_at(frame: FrameType) -> int | None:
    """Where a frame reads the attribute `dtype` that it calls a function with now; None if it calls it otherwise."""
    before = [each for each in dis.get_instructions(frame.f_code) if each.offset < frame.f_lasti]
    last = next((each for each in reversed(before) if each.opname not in _OF_CALLS), None)
    return last.offset if last is not None and last.opname == "LOAD_ATTR" and last.argval == "dtype" else None


_OF_CALLS = ("CACHE", "PRECALL", "KW_NAMES", "EXTENDED_ARG", "LOAD_CONST")

"""`copy.deepcopy` for what models hold: it fails at no tensor with a history, lock, open file or frozen dict."""

from __future__ import annotations

import copy
import gc
from collections import OrderedDict
from types import FunctionType, ModuleType, TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.errors import FxpruneError

__all__ = ["Memo", "deepcopy"]

# What `copy.deepcopy` keeps: the copy of each object, by the id of the object.
Memo: TypeAlias = dict[int, Any]


def deepcopy(value: Any, memo: Memo) -> Any:
    """`copy.deepcopy(value, memo)`, with other copies of what that cannot copy.

    Tensors with a history are copied as values. Subclasses of dict, list, tuple and set whose own code refuses are
    copied without it. What is left, such as a lock, a Python module or an open file, is shared.

    Raises:
        FxpruneError: what cannot be copied holds a tensor or a module, which must not be shared.
    """
    if isinstance(value, torch.Generator):
        # Its state is a tensor, of which it takes no copy on the meta device.
        return memo.setdefault(id(value), torch.Generator(value.device).set_state(value.get_state()))
    while True:
        known = len(memo)
        try:
            with _WithoutHistory():
                return copy.deepcopy(value, memo)
        except FxpruneError:
            raise
        except Exception as error:  # whatever the code of a class raises
            # Copies that this attempt has made may be of things that now are shared.
            for key in list(memo)[known:]:
                del memo[key]
            refusing = _copied_last(error.__traceback__)
            if id(refusing) in memo:
                raise
            memo[id(refusing)] = _other_copy(refusing, memo, error)


def _copied_last(traceback: TracebackType | None) -> Any:
    """What the innermost `copy.deepcopy` of the traceback was to copy."""
    found = None
    while traceback is not None:
        if traceback.tb_frame.f_code is copy.deepcopy.__code__:
            found = traceback.tb_frame.f_locals["x"]
        traceback = traceback.tb_next
    return found


def _other_copy(value: Any, memo: Memo, error: Exception) -> Any:
    for base in (OrderedDict, dict, list, set, tuple):
        if isinstance(value, base):
            return _copied_as(base, value, memo)
    if _holds_parts(value):
        raise FxpruneError(
            f"The model holds a {type(value).__qualname__}, which cannot be copied ({type(error).__name__}: {error}) "
            "and has tensors or modules: give its class a method `__deepcopy__`, or set it to None before this call"
        ) from error
    return value


def _copied_as(base: Any, value: Any, memo: Memo) -> Any:
    """A copy of a container without its class's own code."""
    kind = type(value)
    if base is tuple:
        return base.__new__(kind, [deepcopy(item, memo) for item in base.__iter__(value)])
    result = memo[id(value)] = base.__new__(kind)
    if issubclass(base, dict):
        for key, item in base.items(value):
            base.__setitem__(result, deepcopy(key, memo), deepcopy(item, memo))
    else:
        fill = base.extend if base is list else base.update
        fill(result, [deepcopy(item, memo) for item in base.__iter__(value)])
    vars(result).update(deepcopy(vars(value), memo))
    return result


def _holds_parts(value: object) -> bool:
    """Whether an object refers to tensors or modules, in whatever it is made of."""
    pending, seen = [value], set[int]()
    while pending:
        held = pending.pop()
        if isinstance(held, (Tensor, nn.Module)):
            return True
        if isinstance(held, FunctionType):
            # Not its globals.
            pending += held.__closure__ or ()
        elif id(held) not in seen and not isinstance(held, (type, ModuleType)):
            seen.add(id(held))
            pending += gc.get_referents(held)
    return False


class _WithoutHistory(TorchFunctionMode):
    """Tensors that were computed from parameters, which torch refuses to copy, are copied as values.

    Hooks and caches keep such tensors on the model; they are computed again before they are used.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            try:
                return func(*args)  # type: ignore[no-untyped-call]
            except RuntimeError:
                return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))

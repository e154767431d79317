"""Copies of a model: faster than `copy.deepcopy`, with other tensors, or on the meta device."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.errors import FxpruneError
from fxprune.running.deepcopy import Memo, deepcopy
from fxprune.running.trees import leaves

__all__ = [
    "META",
    "DeepcopyTensorsWith",
    "copy_module",
    "meta_copy",
    "meta_like",
    "named_tensors",
    "parameters_and_buffers",
    "with_zeros",
]

META = torch.device("meta")


def parameters_and_buffers(model: nn.Module) -> Iterable[Tensor]:
    """All parameters, then all buffers, each once."""
    yield from model.parameters()
    yield from model.buffers()


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those outside the `state_dict` too, each under all of its names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def meta_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of the same size, strides and type on the meta device; `dtype` is for floating-point ones."""
    own = tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=own, device=META)


def meta_copy(model: nn.Module, dtype: torch.dtype | None = None) -> tuple[nn.Module, dict[int, Tensor]]:
    """A copy of the model on the meta device; and the original of each of the copy's tensors, by the copy's id.

    Args:
        model: not changed.
        dtype: of the floating-point tensors of the copy; default: as they are.
    """
    real: dict[int, Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise FxpruneError("The model has lazy modules: run it once on an input before tracing it.")
        meta = meta_like(tensor, dtype)
        if isinstance(tensor, nn.Parameter):
            meta = nn.Parameter(meta, tensor.requires_grad)
        real[id(meta)] = tensor
        return meta

    memo: Memo = {id(tensor): convert(tensor) for tensor in parameters_and_buffers(model)}
    with DeepcopyTensorsWith(convert):
        return copy_module(model, memo), real


def with_zeros(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, or if it has tensors on the meta device, a copy with zeros on a device for them; the rest is shared.

    Parameters of the copy are one zero in memory, whatever their size.
    """
    if not any(tensor.is_meta for tensor in parameters_and_buffers(model)):
        return model

    def convert(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.new_zeros((), device=device).expand(tensor.shape), tensor.requires_grad)
        return tensor.new_zeros(tensor.shape, device=device)

    with DeepcopyTensorsWith(convert):
        return copy_module(model, {id(tensor): convert(tensor) for tensor in parameters_and_buffers(model)})


class DeepcopyTensorsWith(TorchFunctionMode):
    """While it is active, `copy.deepcopy` of a tensor gives what `convert` makes of it."""

    def __init__(self, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.convert = convert

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.convert(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copy_module(module: nn.Module, memo: Memo | None = None, *, hooks: bool = True) -> nn.Module:
    """`copy.deepcopy(module, memo)`, but what is empty or cannot change is not copied, which is much of a module.

    Functions that it holds, above all hooks, refer to the copy wherever they referred to the original: to what is in
    it, or to a list, set or dict of tensors that they share. With `hooks=False` the forward hooks of the module itself
    are left out.
    """
    memo = {} if memo is None else memo
    result = _copy_module(module, memo, hooks)
    for part in result.modules():
        for name, value in vars(part).items():
            if type(value) in _FUNCTIONS:
                vars(part)[name] = _rebound(value, memo)
            elif isinstance(value, dict) and name not in ("_modules", "_parameters", "_buffers"):
                _rebind_held(value.items(), functools.partial(dict.__setitem__, value), memo)
            elif isinstance(value, list):
                _rebind_held(enumerate(value), functools.partial(list.__setitem__, value), memo)
    return result


# --- modules ----------------------------------------------------------------------------------------------------------


_IMMUTABLE = frozenset({type(None), bool, int, float, str, type, torch.dtype, torch.Size})
# Scripted functions refuse to be copied.
_SHARED = _IMMUTABLE | {torch.jit.ScriptFunction}
_IN_EVERY_MODULE = frozenset(vars(nn.Module()))
_FORWARD_HOOKS = frozenset(
    name for name in _IN_EVERY_MODULE if name.startswith(("_forward_hooks", "_forward_pre_hooks"))
)
_COPY_METHODS = ("__reduce_ex__", "__getstate__")


def _copy_module(module: nn.Module, memo: Memo, hooks: bool = True) -> nn.Module:
    if id(module) in memo:
        return cast(nn.Module, memo[id(module)])
    kind = type(module)
    own_way = any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in _COPY_METHODS)
    if own_way or hasattr(kind, "__deepcopy__"):
        return cast(nn.Module, deepcopy(module, memo))
    result = kind.__new__(kind)
    memo[id(module)] = result
    attributes = vars(result)
    for name, value in vars(module).items():
        if name == "_compiled_call_impl":
            # It runs the original; `copy.deepcopy` leaves it out as well.
            continue
        if type(value) in _SHARED:
            attributes[name] = value
        elif name == "_modules":
            # An empty Sequential is false.
            attributes[name] = {
                key: None if child is None else _copy_module(child, memo) for key, child in value.items()
            }
        elif name in ("_parameters", "_buffers"):
            attributes[name] = {key: _copy_tensor(tensor, memo) for key, tensor in value.items()}
        elif name in _FORWARD_HOOKS and not hooks:
            attributes[name] = OrderedDict()
        elif type(value) in (dict, OrderedDict, set, list, tuple) and not value:
            attributes[name] = type(value)()
            if name not in _IN_EVERY_MODULE:
                memo[id(value)] = attributes[name]
        elif type(value) is tuple and all(type(item) in _IMMUTABLE for item in value):
            attributes[name] = value
        else:
            attributes[name] = deepcopy(value, memo)
    return result


def _copy_tensor(tensor: Tensor | None, memo: Memo) -> Tensor | None:
    if id(tensor) in memo:
        return cast(Tensor, memo[id(tensor)])
    return copy.deepcopy(tensor, memo) if tensor is None or tensor.is_leaf else deepcopy(tensor, memo)


# --- functions --------------------------------------------------------------------------------------------------------


_FUNCTIONS = frozenset({FunctionType, MethodType})
# What hooks keep tensors in.
_CONTAINERS = (dict, list, set, deque)


def _rebind_held(items: Iterable[tuple[Any, Any]], put: Callable[[Any, Any], None], memo: Memo) -> None:
    """Put what `_rebound` makes of the functions among `items`; a class may forbid its own ways to be changed."""
    for key, held in list(items):
        if type(held) in _FUNCTIONS:
            put(key, _rebound(held, memo))


def _rebound(function: Any, memo: Memo) -> Any:
    """A function, or a method of something in the model, that refers to the copies of what it referred to."""
    if isinstance(function, MethodType):
        owner = memo.get(id(function.__self__), function.__self__)
        return MethodType(_rebound(function.__func__, memo), owner)
    if not isinstance(function, FunctionType) or not function.__closure__:
        return function
    if id(function) not in memo:
        cells = tuple(memo.setdefault(id(cell), CellType()) for cell in function.__closure__)
        result = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
        result.__kwdefaults__ = function.__kwdefaults__
        vars(functools.update_wrapper(result, function)).pop("__wrapped__")
        memo[id(function)] = result
        for cell, old in zip(cells, function.__closure__, strict=True):
            if _is_filled(old) and not _is_filled(cell):
                cell.cell_contents = _copy_of_referred(old.cell_contents, memo)
    return memo[id(function)]


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _copy_of_referred(value: Any, memo: Memo) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in _FUNCTIONS:
        return _rebound(value, memo)
    if isinstance(value, _CONTAINERS) and all(_is_of_the_model(item, memo) for item in leaves(value)):
        return deepcopy(value, memo)
    return value


def _is_of_the_model(value: object, memo: Memo) -> bool:
    return type(value) in _IMMUTABLE or isinstance(value, Tensor) or id(value) in memo

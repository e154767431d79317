"""Copies of models: quick ones, ones whose tensors are made into others, and ones on the meta device."""

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
from fxprune.running.trees import leaves

__all__ = ["META", "TensorCopies", "cloned", "meta_like", "meta_twin", "named_tensors", "tensors_of"]

META = torch.device("meta")


class TensorCopies(TorchFunctionMode):
    """While it is active, `copy.deepcopy` of a tensor is what `convert` makes of it."""

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


_ATOMS = frozenset({type(None), bool, int, float, str, type, torch.dtype, torch.Size})
# Scripted functions refuse to be copied.
_SHARED = _ATOMS | {torch.jit.ScriptFunction}


# What every module has.
_OWN = frozenset(vars(nn.Module()))
_FORWARD_HOOKS = frozenset(name for name in _OWN if name.startswith(("_forward_hooks", "_forward_pre_hooks")))


def cloned(module: nn.Module, memo: dict[int, Any], *, hooks: bool = True) -> nn.Module:
    """`copy.deepcopy(module, memo)`, ten times as fast: most of what a module holds is empty or cannot change.

    Functions that it holds, hooks above all, are made to refer to the copy where they referred to the original: to what
    is in it, or to a list, set or dict of tensors that they share. With `hooks=False` the forward hooks of the module,
    not of those in it, are left out.
    """
    clone = _cloned(module, memo, hooks)
    for part in clone.modules():
        for name, value in vars(part).items():
            if type(value) in _CALLABLE:
                vars(part)[name] = _rebound(value, memo)
            elif isinstance(value, dict) and name not in ("_modules", "_parameters", "_buffers"):
                value.update({key: _rebound(kept, memo) for key, kept in value.items() if type(kept) in _CALLABLE})
            elif isinstance(value, list):
                value[:] = [_rebound(kept, memo) if type(kept) in _CALLABLE else kept for kept in value]
    return clone


def _cloned(module: nn.Module, memo: dict[int, Any], hooks: bool = True) -> nn.Module:
    if id(module) in memo:
        return cast(nn.Module, memo[id(module)])
    kind = type(module)
    if hasattr(kind, "__deepcopy__") or any(
        getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in ("__reduce_ex__", "__getstate__")
    ):
        return cast(nn.Module, _copied(module, memo))
    clone = kind.__new__(kind)
    memo[id(module)] = clone
    attributes = clone.__dict__
    for name, value in module.__dict__.items():
        value_kind = type(value)
        if name == "_compiled_call_impl":
            # It runs the original; `copy.deepcopy` leaves it out as well.
            continue
        if value_kind in _SHARED:
            attributes[name] = value
        elif name == "_modules":
            # An empty Sequential is false.
            attributes[name] = {k: None if child is None else _cloned(child, memo) for k, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            attributes[name] = {key: _copy_of_tensor(tensor, memo) for key, tensor in value.items()}
        elif name in _FORWARD_HOOKS and not hooks:
            attributes[name] = OrderedDict()
        elif value_kind in (dict, OrderedDict, set, list, tuple) and not value:
            attributes[name] = value_kind()
            if name not in _OWN:
                memo[id(value)] = attributes[name]
        elif value_kind is tuple and all(type(item) in _ATOMS for item in value):
            attributes[name] = value
        else:
            attributes[name] = _copied(value, memo)
    return clone


def _copy_of_tensor(tensor: Tensor | None, memo: dict[int, Any]) -> Any:
    if id(tensor) in memo:
        return memo[id(tensor)]
    return copy.deepcopy(tensor, memo) if tensor is None or tensor.is_leaf else _copied(tensor, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    with _WithoutHistory():
        return copy.deepcopy(value, memo)


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


_CALLABLE = frozenset({FunctionType, MethodType})


def _rebound(function: Any, memo: dict[int, Any]) -> Any:
    """A function, or a method of what is in the model, over the copies of what it was a closure over."""
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
                cell.cell_contents = _closed_over(old.cell_contents, memo)
    return memo[id(function)]


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _closed_over(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in _CALLABLE:
        return _rebound(value, memo)
    if isinstance(value, _STORES) and all(_is_of_the_model(item, memo) for item in leaves(value)):
        return _copied(value, memo)
    return value


# Where hooks leave what they have seen.
_STORES = (dict, list, set, deque)


def _is_of_the_model(value: Any, memo: dict[int, Any]) -> bool:
    return type(value) in _ATOMS or isinstance(value, Tensor) or id(value) in memo


def tensors_of(model: nn.Module) -> Iterable[Tensor]:
    """All parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def meta_like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same size, strides and type on the meta device."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


def meta_twin(model: nn.Module) -> tuple[nn.Module, dict[int, Tensor]]:
    """A copy of the model on the meta device, and the original tensor for the identity of each of the copy's."""
    real: dict[int, Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise FxpruneError("The model has lazy modules: run it once on an input before tracing it.")
        meta = meta_like(tensor)
        if isinstance(tensor, nn.Parameter):
            meta = nn.Parameter(meta, tensor.requires_grad)
        real[id(meta)] = tensor
        return meta

    memo: dict[int, Any] = {id(tensor): convert(tensor) for tensor in tensors_of(model)}
    with TensorCopies(convert):
        twin = cloned(model, memo)
    return twin, real


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not in the `state_dict` too, each under all of its names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}

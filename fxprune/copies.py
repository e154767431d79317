"""Copies of models: quick ones, ones whose tensors are made into others, and ones on the meta device."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.errors import FxpruneError
from fxprune.tracing.meta_results import META

__all__ = ["TensorCopies", "cloned", "meta_like", "meta_twin", "tensors_of"]


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


def cloned(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy(module, memo)`, ten times as fast: most of what a module holds is empty or cannot change."""
    if id(module) in memo:
        return cast(nn.Module, memo[id(module)])
    kind = type(module)
    if hasattr(kind, "__deepcopy__") or any(
        getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in ("__reduce_ex__", "__getstate__")
    ):
        return copy.deepcopy(module, memo)
    clone = kind.__new__(kind)
    memo[id(module)] = clone
    attributes = clone.__dict__
    for name, value in module.__dict__.items():
        value_kind = type(value)
        if value_kind in _SHARED or name == "_compiled_call_impl":
            attributes[name] = value
        elif name == "_modules":
            # An empty Sequential is false.
            attributes[name] = {k: None if child is None else cloned(child, memo) for k, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            attributes[name] = {
                key: memo[id(tensor)] if id(tensor) in memo else copy.deepcopy(tensor, memo)
                for key, tensor in value.items()
            }
        elif value_kind in (dict, OrderedDict, set, list, tuple) and not value:
            attributes[name] = value_kind()
        elif value_kind is tuple and all(type(item) in _ATOMS for item in value):
            attributes[name] = value
        elif isinstance(value, Tensor) and not value.is_leaf:
            # What a hook has computed, and computes again before it is used; torch refuses to copy it.
            attributes[name] = memo.setdefault(id(value), value.detach().clone())
        else:
            attributes[name] = copy.deepcopy(value, memo)
    return clone


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

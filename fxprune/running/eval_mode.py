"""A model in eval for a while."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["in_eval", "in_eval_without_grad", "keeping_weights"]


@contextmanager
def in_eval(*models: nn.Module, changing: Iterable[Tensor] = ()) -> Iterator[None]:
    """Within it, models are in eval; afterwards modes are as they were, and buffers, such as a counter of calls.

    Buffers among `changing` are changed on purpose, and stay so.
    """
    modules = {module: module.training for model in models for module in model.modules()}
    owners = [(module._buffers, dict(module._buffers)) for module in modules]
    left = {id(buffer) for buffer in changing}
    # A tensor of inference mode does not count its changes.
    values = [
        (buffer, buffer.detach().clone(), None if buffer.is_inference() else buffer._version)
        for _, buffers in owners
        for buffer in buffers.values()
        if buffer is not None and id(buffer) not in left
    ]
    for model in models:
        # A program of `torch.export` has one mode, that of its export, and refuses to be asked for another.
        with suppress(NotImplementedError):
            model.eval()
    try:
        yield
    finally:
        for module, training in modules.items():
            module.training = training
        for buffers, before in owners:
            buffers.update(before)
        with torch.no_grad():
            for buffer, value, version in values:
                if version is None or buffer._version != version:
                    buffer.copy_(value)


@contextmanager
def in_eval_without_grad(module: nn.Module) -> Iterator[None]:
    """In eval, and without gradients of the weights; afterwards as before."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with in_eval(module):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def keeping_weights(model: nn.Module) -> Iterator[None]:
    """Weights that the model's code writes into, as a layer does that masks its own, are afterwards as they were."""
    writes = _Writes(model.parameters())
    try:
        with writes:
            yield
    finally:
        for parameter, data, value in writes.before:
            parameter.data = data.copy_(value)


class _Writes(TorchFunctionMode):
    """Keeps the values that parameters have before they are written into; few are, and copies of all would be large."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._waiting = {id(parameter): parameter for parameter in parameters}
        self.before: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and _may_write(func):
            parameter = self._waiting.pop(id(args[0]), None)
            if parameter is None and args[0]._is_view():
                parameter = self._waiting.pop(id(args[0]._base), None)
            if parameter is not None:
                self.before.append((parameter, parameter.data, parameter.detach().clone()))
        return func(*args, **(kwargs or {}))


@functools.cache
def _may_write(func: Any) -> bool:
    """Whether a function writes into its first argument, as `mul_` and `__setitem__`, or opens a way to it."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return bool(func.__self__ is vars(torch._C.TensorBase)["data"])
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}"))
    return name.endswith("_")

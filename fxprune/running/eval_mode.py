"""A model in eval for a while, and afterwards as it was."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["in_eval", "in_eval_without_grad", "preserve_weights"]


@contextmanager
def in_eval(*models: nn.Module, changing: Iterable[Tensor] = ()) -> Iterator[None]:
    """Within it, the models are in eval; afterwards modes and buffers, such as a counter of calls, are as before.

    Buffers among `changing` keep what was written into them.
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
    try:
        for model in models:
            # A program of `torch.export` has one mode, that of its export, and refuses to be given another.
            with suppress(NotImplementedError):
                model.eval()
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
    """Within it, a model is in eval and its weights need no gradients; afterwards all is as before."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with in_eval(module):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def preserve_weights(model: nn.Module) -> Iterator[None]:
    """Afterwards the weights are as before; some models write into theirs, as a layer does that masks its weight."""
    writes = _Writes(model.parameters())
    try:
        with writes:
            yield
    finally:
        for parameter, data, value in writes.before:
            parameter.data = data.copy_(value)


class _Writes(TorchFunctionMode):
    """Copies a parameter when it is first written into: few are, and copies of all would be large."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._unchanged = {id(parameter): parameter for parameter in parameters}
        self.before: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and _may_write(func):
            parameter = self._unchanged.pop(id(args[0]), None)
            if parameter is None and args[0]._is_view():
                parameter = self._unchanged.pop(id(args[0]._base), None)
            if parameter is not None:
                self.before.append((parameter, parameter.data, parameter.detach().clone()))
        return func(*args, **(kwargs or {}))


@functools.cache
def _may_write(func: Any) -> bool:
    """Whether a function writes into its first argument, as `mul_` and `__setitem__` do, or opens its `data`."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return bool(func.__self__ is vars(torch._C.TensorBase)["data"])
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}"))
    return name.endswith("_")

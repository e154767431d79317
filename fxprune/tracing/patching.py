"""What has to mean something else while a model is traced, and is put back afterwards."""

from __future__ import annotations

import functools
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from fxprune.running.eager import running_eagerly, source_of_scripted
from fxprune.tracing.numpy_functions import NUMPY_FUNCTIONS
from fxprune.tracing.recording import Recorder
from fxprune.tracing.sizes import BUILTINS, NUMBER_FUNCTIONS, index
from fxprune.tracing.tensor_types import TENSOR_TYPES, TensorType

__all__ = ["packages_of", "recording", "uncached"]

_patches_of_module: dict[int, tuple[ModuleType, dict[str, Any]]] = {}
_cached_of_module: dict[int, tuple[ModuleType, list[tuple[Any, str, Any, Any]]]] = {}


def _patches(module: ModuleType) -> dict[str, Any]:
    """Names in a source file of the model that have to mean something else while it is traced."""
    known = _patches_of_module.get(id(module))
    if known is not None and known[0] is module and module.__name__ != "__main__":
        return known[1]
    patches: dict[str, Any] = {}
    for name, value in vars(module).items():
        if type(value) is type(math.sqrt) and value in NUMBER_FUNCTIONS:
            patches[name] = NUMBER_FUNCTIONS[value]
    for name, replacement in BUILTINS.items():
        if name not in vars(module):
            patches[name] = replacement
    _patches_of_module[id(module)] = (module, patches)
    return patches


def packages_of(model: nn.Module) -> set[str]:
    """The packages of a model's code, but for torch and fxprune.

    They are those that the classes of the model and of its parts come from, and those of the functions and modules that
    the files of these classes name, as `einops` or a file of helpers.
    """
    files = {type(module).__module__ for module in model.modules()}
    # A method may be put into a class from elsewhere.
    files |= {getattr(type(module).forward, "__module__", None) or "" for module in model.modules()}
    named = {_package(origin) for file in files if file in sys.modules for origin in _origins(sys.modules[file])}
    return ({_package(file) for file in files} | (named - sys.stdlib_module_names)) - {"torch", "fxprune"}


def _package(name: str) -> str:
    return name.partition(".")[0]


def _origins(module: ModuleType) -> Iterator[str]:
    """Where the functions and modules come from that a file names."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, (FunctionType, functools._lru_cache_wrapper)):
            yield value.__module__ or ""


def _modules_of(packages: set[str]) -> list[ModuleType]:
    loaded: list[Any] = [module for name, module in list(sys.modules.items()) if _package(name) in packages]
    return [module for module in loaded if isinstance(module, ModuleType)]


@contextmanager
def uncached(packages: set[str]) -> Iterator[None]:
    """Functions with a cache (`functools.lru_cache`) work without it: what they keep must be none of what is made here.

    On the meta device, or in another precision, tensors are made that are of no use to the model afterwards.
    """
    with ExitStack() as stack:
        for module in _modules_of(packages):
            for owner, name, cached, function in _cached_functions(module):
                stack.callback(setattr, owner, name, cached)
                setattr(owner, name, function)
        yield


def _cached_functions(module: ModuleType) -> list[tuple[Any, str, Any, Any]]:
    """Where the module's code finds functions with a cache: owner, name, what is there, and the same without cache."""
    known = _cached_of_module.get(id(module))
    if known is not None and known[0] is module and module.__name__ != "__main__":
        return known[1]
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    found = [
        entry for owner in (module, *classes) for name in list(vars(owner)) for entry in _cached_under(owner, name)
    ]
    _cached_of_module[id(module)] = (module, found)
    return found


def _cached_under(owner: Any, name: str) -> Iterator[tuple[Any, str, Any, Any]]:
    value = vars(owner)[name]
    kind = type(value)
    function = value.__func__ if kind in (staticmethod, classmethod) else value
    if isinstance(function, functools._lru_cache_wrapper):
        yield owner, name, value, function.__wrapped__ if function is value else kind(function.__wrapped__)
    elif isinstance(function, FunctionType):
        # A decorator that calls it when it sees fit.
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                content = cell.cell_contents
                if isinstance(content, functools._lru_cache_wrapper):
                    yield cell, "cell_contents", content, content.__wrapped__


@contextmanager
def recording(recorder: Recorder, own_types: bool = False) -> Iterator[None]:
    """Everything that the recorder's module does in this context, in this thread, is recorded.

    With `own_types`, `int` and `float` are those of Python in the model's files: where they turn a size into a plain
    number, the graph asks for that size.
    """
    packages = packages_of(recorder.root)
    original_call = nn.Module.__call__
    original_apply = torch.autograd.Function.__dict__["apply"]
    script_call = torch._C.ScriptFunction.__call__
    original_compute_weight = SpectralNorm.compute_weight

    def mine() -> bool:
        return recorder.active and threading.get_ident() == recorder.thread

    def computing() -> bool:
        return mine() and not recorder.running_leaf

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not mine():
            return original_call(module, *args, **kwargs)
        return recorder.call_module(module, original_call, args, kwargs)

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original_apply.__get__(None, function)
        return recorder.apply_function(function, bound, args) if mine() and not kwargs else bound(*args, **kwargs)

    def compute_weight(hook: SpectralNorm, owner: nn.Module, do_power_iteration: bool) -> Any:
        if not computing() or id(owner) not in recorder.paths:
            return original_compute_weight(hook, owner, do_power_iteration)
        return recorder.divide_by_spectral_norm(hook, owner, do_power_iteration)

    def call_scripted(function: Any, *args: Any, **kwargs: Any) -> Any:
        # The Python source of a scripted function is as good to trace as any other.
        source = source_of_scripted(function)
        if computing() and source is not None:
            return source(*args, **kwargs)
        return script_call(function, *args, **kwargs)

    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, value)

        stack.enter_context(uncached(packages))
        stack.enter_context(running_eagerly())
        for module in _modules_of(packages):
            for name, value in _patches(module).items():
                if own_types and name in ("int", "float"):
                    continue
                if name in vars(module):
                    stack.callback(vars(module).__setitem__, name, vars(module)[name])
                else:
                    stack.callback(vars(module).pop, name, None)
                vars(module)[name] = value
        for function, replacement in NUMBER_FUNCTIONS.items():
            replace(math, function.__name__, replacement)
        for name, replacement in NUMPY_FUNCTIONS.items():
            replace(np, name, replacement)
        for name in TENSOR_TYPES:
            replace(torch, name, TensorType(getattr(torch, name), recorder, computing))
        replace(operator, "index", index)
        # Whether a mask is causal is asked of its values, for a faster way to the same result.
        replace(
            torch.nn.modules.transformer,
            "_detect_is_causal_mask",
            lambda mask, is_causal=None, size=None: bool(is_causal),
        )
        replace(SpectralNorm, "compute_weight", compute_weight)
        replace(nn.Module, "__call__", call)
        replace(torch.autograd.Function, "apply", classmethod(apply))
        if "__call__" in vars(torch._C.ScriptFunction):
            replace(torch._C.ScriptFunction, "__call__", call_scripted)
        stack.callback(delattr, nn.Module, "training")
        nn.Module.training = _TrainingFlag(recorder, mine)  # type: ignore[assignment]
        stack.callback(setattr, recorder, "active", False)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(recorder)
        yield


class _TrainingFlag:
    """Sees who reads `self.training`; a data descriptor goes before the instance's own attribute."""

    def __init__(self, recorder: Recorder, mine: Callable[[], bool]) -> None:
        self.recorder = recorder
        self.mine = mine

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            raise AttributeError("training")
        if self.mine() and not self.recorder.running_leaf:
            path = self.recorder.paths.get(id(module))
            if path is not None:
                self.recorder.training_readers.add(path)
        return module.__dict__["training"]

    def __set__(self, module: nn.Module, value: Any) -> None:
        module.__dict__["training"] = value

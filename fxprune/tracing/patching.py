"""What is replaced in Python, torch, numpy and the model's files while a model is traced, and put back afterwards.

A `TorchFunctionMode` sees no calls of modules, autograd Functions and old constructors as `torch.FloatTensor(2)`, nor
what Python makes of a size by `int(size)` or `math.sqrt(size)`.
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from fxprune.running.eager import running_eagerly, source_of_scripted
from fxprune.tracing.context_calls import READERS, context_patches
from fxprune.tracing.deciders import ModeRead
from fxprune.tracing.drawing import may_draw
from fxprune.tracing.facts import asking_for_grad_mode
from fxprune.tracing.limits import FInfo, IInfo
from fxprune.tracing.loaded import found_in, modules_of, package_of
from fxprune.tracing.module_calls import ModuleCalls
from fxprune.tracing.number_functions import (
    BUILTINS,
    MATH_FUNCTIONS,
    NUMPY_FUNCTIONS,
    TIED_ARRAY,
    Size,
    broadcast_shapes,
    index,
)
from fxprune.tracing.recorder import Recorder
from fxprune.tracing.tables import without_tables
from fxprune.tracing.user_code import WITHOUT_TENSORS

__all__ = ["packages_of", "patched", "uncached"]

_MISSING = object()
_FUNCTIONS: dict[Any, Any] = {**MATH_FUNCTIONS, **READERS, torch.finfo: FInfo, torch.iinfo: IInfo}


def _patches(module: ModuleType) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Names in a source file of the model that mean something else while it is traced."""
    names = vars(module)
    for name, value in names.items():
        if type(value) in (type(math.sqrt), type) and value in _FUNCTIONS:
            yield names, name, _FUNCTIONS[value]
    yield from ((names, name, replacement) for name, replacement in BUILTINS.items() if name not in names)


@contextmanager
def _named_anew(modules: Sequence[ModuleType], besides: set[str]) -> Iterator[None]:
    """Inside, names in these files mean what they do while a model is traced, but for those that are given."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for names, name, value in found_in(modules, _patches):
            if name not in besides:
                before.append((names, name, names.get(name, _MISSING)))
                names[name] = value
        yield
    finally:
        for names, name, value in reversed(before):
            if value is _MISSING:
                names.pop(name, None)
            else:
                names[name] = value


def packages_of(model: nn.Module) -> set[str]:
    """The packages of a model's code, without torch and fxprune.

    They are those of the classes of the model and its parts, and those of the functions and modules that the files of
    these classes name, as `einops` or a file of helpers.
    """
    files = {type(module).__module__ for module in model.modules()}
    # A class may have a method from another file.
    files |= {getattr(type(module).forward, "__module__", None) or "" for module in model.modules()}
    named = {package_of(origin) for file in files if file in sys.modules for origin in _origins(sys.modules[file])}
    return ({package_of(file) for file in files} | (named - sys.stdlib_module_names)) - {"torch", "fxprune"}


def _origins(module: ModuleType) -> Iterator[str]:
    """The modules of the functions and modules that a file names, without names that no code can say, as pytest's."""
    for name, value in list(vars(module).items()):
        if not name.isidentifier():
            continue
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, (FunctionType, functools._lru_cache_wrapper)):
            yield value.__module__ or ""


@contextmanager
def uncached(packages: set[str], *, emptied: bool = True) -> Iterator[None]:
    """Inside, functions with a cache (`functools.lru_cache`) in these packages run without it, and tables are empty.

    Otherwise they would keep tensors on the meta device, or in another precision, which the model cannot use later.
    """
    with ExitStack() as stack:
        modules = modules_of(packages - WITHOUT_TENSORS)
        stack.enter_context(without_tables(modules, emptied=emptied))
        for owner, name, cached, function in found_in(modules, _cached_functions):
            stack.callback(setattr, owner, name, cached)
            setattr(owner, name, function)
        yield


def _cached_functions(module: ModuleType) -> Iterator[tuple[Any, str, Any, Any]]:
    """The functions with a cache in a file: owner, name, what is there, and the same without its cache."""
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    for owner in (module, *classes):
        for name in list(vars(owner)):
            yield from _cached_under(owner, name)


def _cached_under(owner: Any, name: str) -> Iterator[tuple[Any, str, Any, Any]]:
    value = vars(owner)[name]
    kind = type(value)
    function = value.__func__ if kind in (staticmethod, classmethod) else value
    if isinstance(function, functools._lru_cache_wrapper):
        yield owner, name, value, function.__wrapped__ if function is value else kind(function.__wrapped__)
    elif isinstance(function, FunctionType):
        yield from _cached_in_closure(function, set())


def _cached_in_closure(function: FunctionType, seen: set[FunctionType]) -> Iterator[tuple[Any, str, Any, Any]]:
    """Those that decorators keep in a closure of the function, or of a function there."""
    seen.add(function)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            content = cell.cell_contents
            if isinstance(content, functools._lru_cache_wrapper):
                yield cell, "cell_contents", content, content.__wrapped__
            elif isinstance(content, FunctionType) and content not in seen:
                yield from _cached_in_closure(content, seen)


@contextmanager
def patched(
    recorder: Recorder, modules: ModuleCalls, own_types: bool = False, emptied: bool = True, constructed: bool = False
) -> Iterator[set[ModeRead]]:
    """Inside, all that the recorded model does in this thread is recorded.

    Args:
        recorder: records calls of functions; its recording ends with the context.
        modules: records calls of modules.
        own_types: leave `int` and `float` in the model's files as they are, and let arrays of numpy have plain numbers.
            Where these turn a size into one, the graph is tied to that size.
        emptied: whether tables that the model's files keep are empty.
        constructed: whether `torch.Tensor(size)` is recorded.

    Yields:
        The reads and writes of `training`, so far.
    """
    root, switch = recorder.builder.root, recorder.switch
    packages = packages_of(root)
    original_call = nn.Module.__call__
    original_apply = torch.autograd.Function.__dict__["apply"]
    original_script_call = torch._C.ScriptFunction.__call__
    original_compute_weight = SpectralNorm.compute_weight

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not switch.on:
            return original_call(module, *args, **kwargs)
        return modules.call(module, original_call, args, kwargs)

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original_apply.__get__(None, function)
        return modules.apply(function, bound, args) if switch.on and not kwargs else bound(*args, **kwargs)

    def forward_of(function: type[torch.autograd.Function]) -> Any:
        """As `apply`, which a model's code may have under another name: `round = Round.apply`."""
        forward = function.forward
        takes_context = function.setup_context is torch.autograd.Function.setup_context

        @functools.wraps(forward)
        def recorded(*args: Any) -> Any:
            return apply(function, *args[takes_context:]) if switch.on else forward(*args)

        return staticmethod(recorded)

    def compute_weight(hook: SpectralNorm, owner: nn.Module, do_power_iteration: bool) -> Any:
        path = recorder.scopes.path_of(owner) if switch.on else None
        if path is None:
            return original_compute_weight(hook, owner, do_power_iteration)
        return modules.divide_by_spectral_norm(hook, owner, path, do_power_iteration)

    def call_scripted(function: Any, *args: Any, **kwargs: Any) -> Any:
        # The Python source of a scripted function can be traced like any other.
        source = source_of_scripted(function) if switch.on else None
        return original_script_call(function, *args, **kwargs) if source is None else source(*args, **kwargs)

    original_new = Tensor.__new__

    def new(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if kind is not Tensor or kwargs or not switch.on:
            return original_new(kind, *args, **kwargs)
        return _constructed(args, torch.get_default_dtype())

    def drawing(function: FunctionType) -> Any:
        @functools.wraps(function)
        def drawn(*args: Any, **kwargs: Any) -> Any:
            return modules.draw(function, args, kwargs) if switch.on else function(*args, **kwargs)

        return drawn

    reads: set[ModeRead] = set()
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            if name in owner.__dict__:
                stack.callback(setattr, owner, name, owner.__dict__[name])
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, value)

        stack.enter_context(uncached(packages, emptied=emptied))
        stack.enter_context(running_eagerly())
        files = modules_of(packages)
        stack.enter_context(_named_anew(files, {"int", "float"} if own_types else set()))
        for file, name, helper in _drawing(files) if recorder.training else ():
            replace(file, name, drawing(helper))
        for function, replacement in MATH_FUNCTIONS.items():
            replace(math, function.__name__, replacement)
        for name, replacement in NUMPY_FUNCTIONS.items():
            replace(np, name, TIED_ARRAY if own_types and name == "array" else replacement)
        for owner, name, replacement in context_patches():
            replace(owner, name, replacement)
        for name in _TENSOR_TYPES:
            replace(torch, name, _TensorType(getattr(torch, name), recorder))
        if constructed:
            # It reads the constructor when it is first imported.
            importlib.import_module("torch._dynamo")
            replace(Tensor, "__new__", staticmethod(new))
        replace(operator, "index", index)
        replace(torch, "Size", Size)
        replace(torch, "finfo", FInfo)
        replace(torch, "iinfo", IInfo)
        replace(torch, "broadcast_shapes", broadcast_shapes)
        replace(torch, "is_grad_enabled", asking_for_grad_mode(recorder.facts, switch))
        # It reads the values of a mask to choose a faster way to the same result.
        replace(
            torch.nn.modules.transformer,
            "_detect_is_causal_mask",
            lambda mask, is_causal=None, size=None: bool(is_causal),
        )
        replace(SpectralNorm, "compute_weight", compute_weight)
        replace(nn.Module, "__call__", call)
        replace(torch.autograd.Function, "apply", classmethod(apply))
        for owner, value in [(function, forward_of(function)) for function in _functions(torch.autograd.Function)]:
            replace(owner, "forward", value)
        if "__call__" in vars(torch._C.ScriptFunction):
            replace(torch._C.ScriptFunction, "__call__", call_scripted)
        stack.callback(delattr, nn.Module, "training")
        nn.Module.training = _TrainingFlag(recorder, reads)  # type: ignore[assignment]
        stack.callback(switch.end)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(recorder)
        yield reads


def _drawing(files: Sequence[ModuleType]) -> list[tuple[ModuleType, str, FunctionType]]:
    """The helpers that may draw random numbers from NumPy, by the files and names that they have there."""
    return [
        (file, name, value)
        for file in files
        if package_of(file.__name__) not in WITHOUT_TENSORS
        for name, value in vars(file).items()
        if type(value) is FunctionType and may_draw(value)
    ]


def _functions(parent: type[torch.autograd.Function]) -> Iterator[type[torch.autograd.Function]]:
    """The Functions of users, and those that they are made from."""
    for function in parent.__subclasses__():
        if package_of(function.__module__) not in ("torch", "fxprune"):
            yield function
        yield from _functions(function)


class _TrainingFlag:
    """Notes who reads or sets whose `training`; a data descriptor goes before an attribute of the instance."""

    def __init__(self, recorder: Recorder, reads: set[ModeRead]) -> None:
        self._recorder = recorder
        self._reads = reads

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            raise AttributeError("training")
        self._note(module)
        return module.__dict__["training"]

    def __set__(self, module: nn.Module, value: Any) -> None:
        self._note(module)
        module.__dict__["training"] = value

    def _note(self, module: nn.Module) -> None:
        path = self._recorder.scopes.path_of(module) if self._recorder.switch.on else None
        if path is not None:
            self._reads.add((self._recorder.scopes.current[0], path))


# Constructors, and types for `isinstance`, that are older than `torch.empty` and dtypes.
_TENSOR_TYPES = tuple(
    f"{name}Tensor"
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    if hasattr(torch, f"{name}Tensor")
)


def _constructed(args: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    """What these constructors give, by functions of torch that are recorded."""
    first = args[0] if args else 0
    if isinstance(first, Tensor):
        return first.detach()
    if isinstance(first, (int, torch.Size)):
        return torch.empty(*(args or (0,)), dtype=dtype)
    return torch.tensor(first, dtype=dtype)


class _TensorType:
    """Stands for `torch.FloatTensor` or one of its kind; no tensor on the meta device is of such a type."""

    def __init__(self, kind: Any, recorder: Recorder) -> None:
        self._kind, self._recorder = kind, recorder

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """An empty tensor of that size, or one of these entries."""
        if kwargs or not self._recorder.switch.on:
            return self._kind(*args, **kwargs)
        return _constructed(args, self._kind.dtype)

    def __instancecheck__(self, value: Any) -> bool:
        """Whether the real tensor is of that type."""
        if not isinstance(value, Tensor) or not self._recorder.switch.on:
            return isinstance(value, self._kind)
        return value.dtype == self._kind.dtype and self._recorder.device.type == "cpu"

    def __getattr__(self, name: str) -> Any:
        """All else is the type's."""
        return getattr(self._kind, name)

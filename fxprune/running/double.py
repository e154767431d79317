"""Run a model in float64, so that two models that compute the same differ by rounding alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.running import trees
from fxprune.running.devices import on_device_of
from fxprune.running.eager import running_eagerly

__all__ = ["is_in_double", "outputs_in_double"]


def outputs_in_double(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that a model returns in float64 and eval; the model is changed to both: give a copy."""
    with torch.no_grad():
        args, kwargs = trees.map_tensors(_to_double, on_device_of(model, (args, kwargs)))
    # Going through training, models forget what they keep from an earlier call in eval.
    model._apply(_to_double).train().eval()  # type: ignore[no-untyped-call]
    for module in model.modules():
        # Tensors that are plain attributes.
        vars(module).update({name: _to_double(value) for name, value in vars(module).items()})
    devices = range(torch.cuda.device_count())
    with torch.no_grad(), running_eagerly(), _in_double(), torch.random.fork_rng(devices):
        # Any two models draw the same random numbers.
        torch.manual_seed(0)
        return trees.tensors(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))


_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}
# Legacy constructors and types that models ask tensors for.
_NARROW_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")
# A constant instead of noise: a pruned model draws fewer numbers than its original.
_NOISE: dict[Any, Callable[..., Any]] = {
    torch.randn_like: functools.partial(torch.full_like, fill_value=0.5),
    torch.rand_like: functools.partial(torch.full_like, fill_value=0.5),
}


class _WideCasts(TorchFunctionMode):
    """Casts to a narrower float type, and tensors made in one, give float64; noise is a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _NOISE.get(func, func)
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        # What a function writes into has to stay the very same tensor.
        of_tensors = not getattr(func, "__name__", "_").endswith("_") and not (kwargs or {}).keys() & {"out"}
        kwargs = {name: _widened(value, of_tensors) for name, value in (kwargs or {}).items()}
        return func(*(_widened(value, of_tensors) for value in args), **kwargs)


def _widened(value: Any, of_tensors: bool) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    # As `torch.FloatTensor([0.5])`, which is made past this mode.
    return _to_double(value) if of_tensors and type(value) is Tensor else value


_depth = 0


def is_in_double() -> bool:
    """Whether models are run in float64 now, to be compared: checks of types are for other runs."""
    return _depth > 0


@contextmanager
def _in_double() -> Iterator[None]:
    global _depth
    default, types = torch.get_default_dtype(), {name: getattr(torch, name) for name in _NARROW_TYPES}
    try:
        _depth += 1
        torch.set_default_dtype(torch.float64)
        vars(torch).update(dict.fromkeys(types, torch.DoubleTensor))
        with _WideCasts():
            yield
    finally:
        _depth -= 1
        vars(torch).update(types)
        torch.set_default_dtype(default)


def _to_double(value: Any) -> Any:
    return value.to(_WIDE.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value

"""Run a model in float64, so that two models that compute the same differ by rounding alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.running import trees
from fxprune.running.devices import on_device_of
from fxprune.running.eager import running_eagerly
from fxprune.running.randomness import preserve_rng_state, reseed

__all__ = ["is_in_double", "outputs_in_double"]


def outputs_in_double(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool = False
) -> list[Tensor]:
    """The tensors that a model returns in float64; the model is changed: give a copy.

    Args:
        model: set to float64, and to eval or training.
        args: positional arguments.
        kwargs: keyword arguments.
        training: whether in training. Dropout that a model has in eval too is left out in both.
    """
    with torch.no_grad():
        args, kwargs = trees.map_tensors(_to_double, on_device_of(model, (args, kwargs)))
    # Going through training, models forget what they keep from an earlier call in eval.
    model._apply(_to_double).train().eval().train(training)  # type: ignore[no-untyped-call]
    for module in model.modules():
        # Tensors that are plain attributes.
        own = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        vars(module).update({name: _to_double(value) for name, value in own.items()})
        if training and isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    with torch.no_grad(), running_eagerly(), _in_double(), _NoDropout(training), preserve_rng_state():
        # Any two models draw the same random numbers.
        reseed(0)
        # A model may enable gradients.
        return [tensor.detach() for tensor in trees.tensors(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))]


_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}
# Legacy constructors and types that models ask tensors for.
_NARROW_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")


def _grouped_mm(left: Tensor, right: Tensor, offs: Tensor | None = None, **options: Any) -> Tensor:
    """`torch.nn.functional.grouped_mm` for any dtype; rows after the last group are 0."""
    if offs is None:
        return left @ right
    ends = [0, *offs.tolist()]
    parts = list(enumerate(pairwise(ends)))
    if right.ndim == 2 and left.ndim == 2:
        return torch.stack([left[:, a:b] @ right[a:b] for _, (a, b) in parts])
    if right.ndim == 2:
        return torch.cat([left[k] @ right[:, a:b] for k, (a, b) in parts], 1)
    products = [left[a:b] @ right[k] for k, (a, b) in parts]
    return torch.cat([*products, left.new_zeros(len(left) - ends[-1], right.shape[-1])])


# Torch has these for narrow types alone.
_ALSO_WIDE: dict[Any, Callable[..., Any]] = dict.fromkeys((F.grouped_mm, torch._grouped_mm), _grouped_mm)
# A constant instead of noise: a pruned model draws fewer numbers than its original.
_NOISE: dict[Any, Callable[..., Any]] = {
    torch.randn_like: functools.partial(torch.full_like, fill_value=0.5),
    torch.rand_like: functools.partial(torch.full_like, fill_value=0.5),
}


class _WideCasts(TorchFunctionMode):
    """Casts to a narrower float type, and tensors made in one, give float64; noise is a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _NOISE.get(func, _ALSO_WIDE.get(func, func))
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        # What a function writes into has to stay the very same tensor.
        of_tensors = not getattr(func, "__name__", "_").endswith("_") and not (kwargs or {}).keys() & {"out"}
        kwargs = {name: _widened(value, of_tensors) for name, value in (kwargs or {}).items()}
        return func(*(_widened(value, of_tensors) for value in args), **kwargs)


class _NoDropout(TorchFunctionMode):
    """Dropout keeps all, in eval too: it draws a number for each channel, and a pruned model has fewer.

    Args:
        training: whether uniform noise is 0.5.
    """

    def __init__(self, training: bool) -> None:
        super().__init__()
        self._training = training

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.rand and self._training:
            # Where layers are skipped at random, the graph has the likelier way.
            return func(*args, **kwargs).fill_(0.5)
        if func is F.scaled_dot_product_attention and len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        elif func is F.scaled_dot_product_attention:
            kwargs = {**kwargs, "dropout_p": 0.0}
        elif func is F.multi_head_attention_forward:
            kwargs = {**kwargs, "training": False}
        elif "dropout" in getattr(func, "__name__", ""):
            kept = kwargs["input"] if "input" in kwargs else args[0]
            return (kept, torch.ones_like(kept, dtype=torch.bool)) if func is torch.native_dropout else kept
        return func(*args, **kwargs)


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

"""The invariant as a function: a pruned model equals the original with the removed entries set to zero."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fxprune.analysis import analyze
from fxprune.errors import FxpruneError
from fxprune.planning.plan import Plan
from fxprune.rewriting import plan_of, rewrite
from fxprune.running import trees
from fxprune.running.calls import call_of
from fxprune.running.copies import copy_module, named_tensors
from fxprune.running.devices import on_device_of
from fxprune.running.eager import running_eagerly
from fxprune.tracing.aliasing import written_attributes
from fxprune.tracing.constants import tensor_at
from fxprune.tracing.patching import packages_of, uncached
from fxprune.tracing.tracer import leaves_of, trace

__all__ = ["largest_difference", "mask", "outputs_in_double", "verify"]


def verify(model: nn.Module, pruned: nn.Module, example_inputs: Any = None) -> float:
    """How far a pruned model is from its zero-masked original, in float64.

    The weights of a compensated model are no longer slices of the original's. Of such a model the structure is
    certified: it is compared with the slices in the place of its weights, which must be finite.

    Args:
        model: the original; not changed.
        pruned: what was made of it by `fxprune.prune` or `fxprune.rewrite`; not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; default as for `fxprune.trace`.

    Returns:
        The largest difference of any output entry, divided by the largest entry of that output; below 1e-9 when right.

    Raises:
        FxpruneError: `pruned` has no plan, its outputs have other shapes, its weights are not those of its plan, or
            `model` is not what was pruned.
    """
    plan = plan_of(pruned)
    traced = "example_inputs" in getattr(pruned, "meta", {})
    args, kwargs = call_of(pruned if traced else model, example_inputs)
    if getattr(pruned, "meta", {}).get("compensated"):
        if not all(map(_is_finite, pruned.state_dict().values())):
            return float("inf")
        pruned = _as_cut(model, pruned, plan, dict(kwargs) or args)
    with uncached(packages_of(model)):
        try:
            expected = outputs_in_double(mask(model, plan), args, kwargs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise FxpruneError(
                f"{type(model).__name__} does not run on these inputs in float64, in which models are compared: {error}"
            ) from error
        got = outputs_in_double(_in_state_of(model, pruned, plan), args, kwargs)
        if not all(map(_is_finite, expected)) and all(map(_is_finite, got)):
            # What is divided by its own norm, as in weight_norm, is 0 / 0 where all of it was removed.
            expected = outputs_in_double(mask(copy_module(model).double(), plan, fill=_ALMOST_ZERO), args, kwargs)
        if not all(map(_is_finite, expected)) and all(map(_is_finite, got)):
            # Nor can what divides by differences of a buffer, as splines do by those of their grid: weights alone go.
            expected = outputs_in_double(mask(model, _of_parameters(model, plan)), args, kwargs)
    return largest_difference(expected, got)


def largest_difference(expected: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """The largest difference of any entry, divided by the largest entry of its tensor.

    Raises:
        FxpruneError: the shapes are others.
    """
    return max((_relative_error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def _in_state_of(model: nn.Module, pruned: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the pruned model; what it keeps from call to call is in it what the original has now.

    Either may have run since the other was made.
    """
    copied = copy_module(pruned)
    tensors, places = named_tensors(model), getattr(pruned, "meta", {}).get("constant_places", {})
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in written_attributes(pruned) - parameters if isinstance(pruned, fx.GraphModule) else ():
        state = tensor_at(model, places[name]) if name in places else tensors.get(name)
        if state is not None:
            for dim, kept in plan.kept.get(name, {}).items():
                state = state.index_select(dim, torch.tensor(kept, device=state.device))
            own = named_tensors(copied)[name]
            if state.shape == own.shape:
                own.copy_(state)
    return copied


def _as_cut(model: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any) -> nn.Module:
    """A copy of a compensated model with the weights that the cut left it."""
    bare = rewrite(analyze(trace(model, inputs, copy=False, leaves=leaves_of(pruned))), plan)
    own = copy_module(pruned)
    try:
        own.load_state_dict(bare.state_dict())
    except RuntimeError as error:
        raise FxpruneError(
            f"the compensated model is not what its plan makes of this model: {error}; "
            "verify it with the model that it was pruned from, before it is changed in other ways"
        ) from error
    return own


# Its square is a number, and there is nothing to which adding it makes a difference.
_ALMOST_ZERO = 1e-150


def outputs_in_double(model: nn.Module, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that a model returns in float64; the model is changed to it, and to eval."""
    with torch.no_grad():
        args, kwargs = trees.map_tensors(_to_double, on_device_of(model, (args, kwargs)))
    # Going through training, models forget what they keep of an earlier pass in eval.
    model._apply(_to_double).train().eval()  # type: ignore[no-untyped-call]
    for module in model.modules():
        # A tensor that is a plain attribute.
        vars(module).update({name: _to_double(value) for name, value in vars(module).items()})
    # Both models draw the same random numbers.
    devices = range(torch.cuda.device_count())
    with torch.no_grad(), running_eagerly(), _in_double(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return trees.tensors(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())


_WIDE = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


# What a model may ask a tensor for, or make one with.
_NARROW_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")


# One number for all entries, for there are fewer entries to draw where channels were removed.
_NOISE: dict[Any, Callable[..., Any]] = {
    torch.randn_like: functools.partial(torch.full_like, fill_value=0.5),
    torch.rand_like: functools.partial(torch.full_like, fill_value=0.5),
}


class _WideCasts(TorchFunctionMode):
    """What a model casts to, or makes in, a narrower float type is float64 instead; noise is a constant."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = _NOISE.get(func, func)
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        # What it is given to write into has to be that very tensor.
        of_tensors = not getattr(func, "__name__", "_").endswith("_") and not (kwargs or {}).keys() & {"out"}
        kwargs = {name: _widened(value, of_tensors) for name, value in (kwargs or {}).items()}
        return func(*(_widened(value, of_tensors) for value in args), **kwargs)


def _widened(value: Any, of_tensors: bool) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    # As `torch.FloatTensor([0.5])`, which is made past this mode.
    return _to_double(value) if of_tensors and type(value) is torch.Tensor else value


@contextmanager
def _in_double() -> Iterator[None]:
    default, types = torch.get_default_dtype(), {name: getattr(torch, name) for name in _NARROW_TYPES}
    torch.set_default_dtype(torch.float64)
    vars(torch).update(dict.fromkeys(types, torch.DoubleTensor))
    try:
        with _WideCasts():
            yield
    finally:
        vars(torch).update(types)
        torch.set_default_dtype(default)


def _to_double(value: Any) -> Any:
    return value.to(_WIDE.get(value.dtype, value.dtype)) if isinstance(value, torch.Tensor) else value


def _relative_error(expected: torch.Tensor, got: torch.Tensor) -> float:
    if expected.shape != got.shape:
        raise FxpruneError(f"output has shape {tuple(got.shape)}, the original's has {tuple(expected.shape)}")
    if not expected.numel():
        return 0.0
    wide = torch.complex128 if expected.is_complex() or got.is_complex() else torch.float64
    expected, got = expected.to(wide), got.to(expected.device, wide)
    difference = (expected - got).abs().max()
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = float(difference / scale)
    return error if error == error else float("inf")


def _of_parameters(model: nn.Module, plan: Plan) -> Plan:
    """What a plan keeps of the parameters."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return replace(plan, kept={name: by_dim for name, by_dim in plan.kept.items() if name in names})


def mask(model: nn.Module, plan: Plan, fill: float = 0.0) -> nn.Module:
    """A copy of the model in which every parameter and buffer entry that the plan removes is zero, or `fill`.

    Raises:
        FxpruneError: the plan keeps what the model does not have.
    """
    masked = copy_module(model)
    tensors = named_tensors(masked)
    with torch.no_grad():
        for name, by_dim in plan.kept.items():
            if name not in tensors:
                continue
            tensor = tensors[name]
            for d, kept in by_dim.items():
                if d >= tensor.dim() or kept[-1] >= tensor.shape[d]:
                    raise FxpruneError(
                        f"{name} has shape {tuple(tensor.shape)}, and the plan keeps index {kept[-1]} of its dimension "
                        f"{d}: {type(model).__name__} is not the model that was pruned"
                    )
                lost = torch.ones(tensor.shape[d], dtype=torch.bool, device=tensor.device)
                lost[kept] = False
                tensor.index_fill_(d, torch.nonzero(lost).flatten(), fill)
    return masked

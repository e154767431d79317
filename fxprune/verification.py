"""The invariant as a function: a pruned model equals the original with the removed entries set to zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from fxprune.errors import FxpruneError, called_as
from fxprune.planning.plan import Plan
from fxprune.provenance import check_order, plan_from, pruning_notes
from fxprune.rewriting import original_graph, rewrite_in_stages
from fxprune.running import trees
from fxprune.running.calls import Call
from fxprune.running.copies import copy_module, named_tensors
from fxprune.running.devices import check_values
from fxprune.running.double import outputs_in_double
from fxprune.tracing.aliasing import written_attributes
from fxprune.tracing.caches import forget
from fxprune.tracing.constants import tensor_at
from fxprune.tracing.notes import call_of, trace_notes
from fxprune.tracing.patching import packages_of, uncached
from fxprune.tracing.traced_module import copy_to_run
from fxprune.tracing.tracer import trace

__all__ = ["TOLERANCE", "largest_error", "mask", "relative_error", "verify", "verify_structure"]

TOLERANCE = 1e-9
"""The largest relative error in float64 of two models that compute the same: they differ in the order of sums."""

_CALL = "verify(original, pruned, example_inputs=None, *, training=False)"


@called_as(_CALL)
def verify(original: nn.Module, pruned: nn.Module, example_inputs: Any = None, *, training: bool = False) -> float:
    """How far a pruned model is from its zero-masked original, in float64.

    The weights of a compensated model are no longer slices of the original's. Of such a model this verifies the
    structure: it compares with slices in place of the weights, which must be finite.

    Args:
        original: the model before pruning; not changed. Of a model that was pruned several times, the model before any
            of them.
        pruned: what `fxprune.prune` or `fxprune.rewrite` made of it; not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; default: those of the pruning.
        training: compare what both compute in training, without dropout, whose random numbers differ. BatchNorm then
            takes the statistics of the batch.

    Returns:
        The largest difference of any output entry, divided by the largest entry of that output; at most 1e-9 when
        right. Infinities and NaN must be the same in both; where they are not, the error is infinite.

    Raises:
        FxpruneError: `pruned` has no plan, its outputs have other shapes, its weights are not those of its plan, or
            `original` is not the model that was pruned.
    """
    check_order(_CALL, original, pruned)
    check_values("verify", original, pruned)
    if pruning_notes(pruned).compensated:
        return verify_structure(original, pruned, example_inputs, training=training)
    call = call_of(pruned, example_inputs)
    return _error(original, pruned, plan_from(original, pruned), call, training)


def verify_structure(
    original: nn.Module, pruned: nn.Module, example_inputs: Any = None, *, training: bool = False
) -> float:
    """As `verify`, with slices of the original's weights in place of those that `pruned` has; these must be finite."""
    if not _all_finite(pruned.state_dict().values()):
        return float("inf")
    plan, (args, kwargs) = plan_from(original, pruned), call_of(pruned, example_inputs)
    leaves = trace_notes(pruned).leaves
    bare = rewrite_in_stages(
        original_graph(original, pruned, kwargs or args),
        pruning_notes(pruned),
        lambda stage: trace(stage, kwargs or args, copy=False, leaves=leaves),
    )
    structure = copy_module(pruned)
    try:
        structure.load_state_dict(bare.state_dict())
    except RuntimeError as error:
        raise FxpruneError(
            f"the compensated model is not what its plan makes of this model: {error}; "
            "verify it with the model that it was pruned from, before it is changed in other ways"
        ) from error
    return _error(original, structure, plan, (args, kwargs), training)


def _error(original: nn.Module, pruned: nn.Module, plan: Plan, call: Call, training: bool) -> float:
    def outputs(model: nn.Module) -> list[Tensor]:
        return outputs_in_double(model, *call, training=training)

    def limit() -> nn.Module:
        """A norm that was removed as a whole, as weight_norm divides by it, gives 0 / 0, and its limit is a number."""
        return mask(copy_module(original).double(), plan, fill=_ALMOST_ZERO)

    with uncached(packages_of(original)):
        try:
            expected = outputs(mask(original, plan))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            name = type(original).__name__
            raise FxpruneError(
                f"{name} does not run on these inputs in float64, which verify needs: {error}"
            ) from error
        got = outputs(_in_state_of(original, pruned, plan))
        if missing := _undefined(expected, got):
            # Splines divide by differences of a buffer, their grid: mask the weights alone.
            weights = {name for name, _ in original.named_parameters(remove_duplicate=False)}
            of_weights = {name: by_dim for name, by_dim in plan.kept.items() if name in weights}
            for masked in (limit(), mask(original, replace(plan, kept=of_weights))):
                defined = outputs(masked)
                # NaN and infinity may also be what the original computes: then they stay.
                if (fewer := _undefined(defined, got)) < missing:
                    expected, missing = defined, fewer
        off = largest_error(expected, got)
        if off > TOLERANCE:
            with _NotesNaN() as notes:
                outputs(mask(original, plan))
            if notes.found:
                # It may have been compared with a number: then what follows is finite.
                off = min(off, largest_error(outputs(limit()), got))
        if TOLERANCE < off < _SINGLE:
            # The original may have tables of an earlier run in float32, which the graph makes anew in float64.
            masked = mask(original, plan)
            with suppress(FxpruneError):
                traced = trace(original, call[1] or call[0], copy=False, leaves=trace_notes(pruned).leaves)
                forget(masked, trace_notes(traced).forgotten_keys)
                off = min(off, largest_error(outputs(masked), got))
    return off


class _NotesNaN(TorchFunctionMode):
    """Notes whether any function gives NaN."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found |= any(bool(each.isnan().any()) for each in trees.tensors(result) if each.is_floating_point())
        return result


def _undefined(expected: Sequence[Tensor], got: Sequence[Tensor]) -> int:
    """How many entries are NaN in `expected`, or are infinite there alone."""
    return sum(
        int((a.isnan() | ~a.isfinite() & b.isfinite()).sum()) if a.shape == b.shape else 0
        for a, b in zip(expected, got, strict=False)
    )


# Relative, of rounding in float32.
_SINGLE = 1e-5
# Its square is still above zero, and no sum with it differs from one with zero.
_ALMOST_ZERO = 1e-150


def mask(model: nn.Module, plan: Plan, fill: float = 0.0) -> nn.Module:
    """A copy of the model in which every parameter and buffer entry that the plan removes is zero, or `fill`.

    Raises:
        FxpruneError: the plan keeps what the model does not have.
    """
    masked = copy_module(model)
    with torch.no_grad():
        for name, tensor in named_tensors(masked).items():
            plan.zero_(name, tensor, fill)
    return masked


def _in_state_of(original: nn.Module, pruned: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the pruned model with the state that the original keeps from call to call.

    Either may have run since the pruning.
    """
    copied = copy_to_run(pruned)
    tensors, places, present = named_tensors(original), trace_notes(pruned).constant_places, named_tensors(copied)
    parameters = {name for name, _ in original.named_parameters(remove_duplicate=False)}
    for name in written_attributes(pruned) - parameters if isinstance(pruned, fx.GraphModule) else ():
        state, own = tensors.get(name), present[name]
        if state is None and name in places:
            state = tensor_at(original, places[name])
        # Before the first call a state may have another shape.
        with suppress(FxpruneError):
            if state is not None and (cut := plan.cut(name, state)).shape == own.shape:
                own.copy_(cut)
    return copied


def largest_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest relative error of any tensor.

    Raises:
        FxpruneError: there are more or fewer tensors, or their shapes differ.
    """
    if len(expected) != len(got):
        raise FxpruneError(f"there are {len(got)} outputs, and the original has {len(expected)}")
    return max((relative_error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def relative_error(expected: Tensor, got: Tensor) -> float:
    """The largest difference of any entry, divided by the largest entry.

    What is finite is compared. Infinities must be equal and NaN must be in the same places, or the error is infinite.
    Entries beyond 1e30 stand for infinity, as `torch.finfo(dtype).min` in a mask does: they have a scale of their own,
    so that they do not hide the errors of the others.

    Raises:
        FxpruneError: the shapes differ.

    Examples:
        >>> relative_error(torch.tensor([1.0, -4.0]), torch.tensor([2.0, -4.0]))
        0.25
        >>> relative_error(torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]))
        0.0
    """
    if expected.shape != got.shape:
        raise FxpruneError(f"output has shape {tuple(got.shape)}, the original's has {tuple(expected.shape)}")
    if not expected.numel():
        return 0.0
    wide = torch.complex128 if expected.is_complex() or got.is_complex() else torch.float64
    expected, got = expected.to(wide), got.to(expected.device, wide)
    if wide is torch.complex128:
        expected, got = torch.view_as_real(expected), torch.view_as_real(got)
    finite = expected.isfinite() & got.isfinite()
    if not bool((finite | (expected == got) | (expected.isnan() & got.isnan())).all()):
        return float("inf")
    huge = expected.abs() >= _HUGE
    errors = [_scaled(expected, got, finite & ~huge, wide)]
    if bool((finite & huge).any()):
        errors.append(_scaled(expected, got, finite & huge, wide))
    return max(errors)


# Beyond what networks compute, and below the largest numbers of float32 and bfloat16.
_HUGE = 1e30


def _scaled(expected: Tensor, got: Tensor, where: Tensor, dtype: torch.dtype) -> float:
    """The largest difference, divided by the largest entry, of the entries marked in `where`."""
    difference, size = (expected - got).where(where, 0.0), expected.where(where, 0.0)
    if dtype.is_complex:
        difference, size = torch.view_as_complex(difference), torch.view_as_complex(size)
    error = difference.abs().max() / size.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)

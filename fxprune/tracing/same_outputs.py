"""Whether a graph gives what the model does: both run in float64, with weights that are not special."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.calls import Call
from fxprune.running.double import outputs_in_double
from fxprune.tracing.patching import packages_of, uncached
from fxprune.tracing.runs import Runner
from fxprune.tracing.traced_module import copy_to_run

__all__ = ["are_same", "outputs_of"]

# Relative, in float64: a table that the model has kept in float32 is another one to `verify`.
_SAME = 1e-9


def outputs_of(runner: Runner, model: nn.Module, call: Call, training: bool) -> list[Tensor] | None:
    """What a copy of the model gives with other weights in two calls; None where it does not run, or not in float64.

    Raises:
        FxpruneError: a graph refuses the call.
    """
    model = copy_to_run(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.is_floating_point():
                # Zeros would hide what they are multiplied with.
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)
    try:
        with uncached(packages_of(runner.model)):
            # Two, for what it keeps from call to call.
            calls = [trees.map_tensors(torch.clone, call) for _ in range(2)]
            return [x.clone() for given in calls for x in outputs_in_double(model, *given, training=training)]
    except FxpruneError:
        raise
    except Exception:
        # The model's own code runs at sizes that it may not be made for.
        return None


def are_same(expected: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    """Whether these are the same outputs, but for rounding."""
    return len(expected) == len(got) and all(map(_is_same, expected, got))


def _is_same(expected: Tensor, got: Tensor) -> bool:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, got)
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return False
    difference = (expected - got).where(finite, 0.0).abs().sum()
    return bool(difference <= _SAME * expected.where(finite, 0.0).abs().sum())

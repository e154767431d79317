"""Branches for one size, as `mask = self.mask if x.shape[2] == 64 else self.make_mask(x.shape[2])`.

The graph has one of both branches. The one for the size that the code names would tie it to that size. The other one is
good for all sizes if it computes the same for that one too, so both are tried.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.copies import copy_module, parameters_and_buffers
from fxprune.running.double import outputs_in_double
from fxprune.tracing.assembly import assemble
from fxprune.tracing.guards import named_sizes
from fxprune.tracing.patching import packages_of, uncached
from fxprune.tracing.runs import Leaves, Recording, Runner
from fxprune.tracing.user_code import Place

__all__ = ["right_for_all_sizes"]

# Relative, in float64: a table that the model has kept in float32 is another one to `verify`.
_SAME = 1e-9


def right_for_all_sizes(runner: Runner, recorded: Recording, leaves: Leaves) -> frozenset[Place]:
    """The places in the model's code where the branch for other sizes does at the example's what the one for it does.

    The model runs in float64 if there are such branches, and once more for each of them that differs.
    """
    places = named_sizes(recorded.builder, recorded.sizes)
    if not places or any(tensor.is_meta for tensor in parameters_and_buffers(runner.model)):
        return frozenset()
    try:
        expected = _outputs(runner, copy_module(runner.model))
    except RuntimeError:
        # Not everything runs in float64.
        return frozenset()
    found: frozenset[Place] = frozenset()
    for tried in dict.fromkeys((frozenset(places), *(frozenset({place}) for place in sorted(places)))):
        if not tried <= found and _gives(expected, replace(runner, otherwise=found | tried), leaves):
            found |= tried
    return found


def _gives(expected: list[Tensor], runner: Runner, leaves: Leaves) -> bool:
    try:
        builder = runner.record(leaves, set()).builder
        got = _outputs(runner, assemble(runner.model, builder, lambda tensor: tensor.detach().clone()))
    except (FxpruneError, RuntimeError):
        return False
    return len(expected) == len(got) and all(map(_is_same, expected, got))


def _outputs(runner: Runner, model: nn.Module) -> list[Tensor]:
    with uncached(packages_of(runner.model)):
        return outputs_in_double(model, *trees.map_tensors(torch.clone, (runner.args, runner.kwargs)))


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

"""The ways in which a model is recorded in eval, one after the other, where its code follows values of its input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.flops import count_flops
from fxprune.running import trees
from fxprune.running.copies import parameters_and_buffers
from fxprune.tracing.assembly import assemble
from fxprune.tracing.checks import check_outcome
from fxprune.tracing.guards import needed_guards
from fxprune.tracing.real_values import DataDependentError
from fxprune.tracing.refusals import part_of
from fxprune.tracing.runs import Leaves, Recording, Runner
from fxprune.tracing.spelling import first_few

__all__ = ["AS_EXPORTED", "COMPILED", "CONDITIONS", "OTHER_WAY", "SIZED_BY_VALUES", "STAYS_WHOLE", "record_in_eval"]

_OTHERWISE = (
    "otherwise the model's control flow depends on the values of its input, or a function does not run without values."
)
AS_EXPORTED, _AS_COMPILED = f"Traced as for torch.export: {_OTHERWISE}", f"Traced as for torch.compile: {_OTHERWISE}"
# Among the values that were read of a model: whether it was traced so.
COMPILED = "traced as for torch.compile"
# How remarks start that become warnings.
OTHER_WAY = "The model's way for torch.export, which is in the graph,"
STAYS_WHOLE = "A part stays whole"
SIZED_BY_VALUES = "Values of the input decide how large some tensors are"
CONDITIONS = "Conditions on the values of the input are those of the example"


def record_in_eval(runner: Runner, leaves: Leaves, kept: set[str], remarks: list[str]) -> Recording:
    """The recording; modules whose code follows the values of the input stay whole if they are less than half.

    Where that does not help, tensors may be as large as the values of the input say. The code may not follow that size.

    Args:
        runner: of the model; learns how it is recorded.
        leaves: modules that the user wants whole.
        kept: the paths of those that stay whole; gets more.
        remarks: gets what the user needs to know.

    Raises:
        FxpruneError: the model cannot be traced.
    """
    first: FxpruneError | None = None
    whole: list[str] = []
    while True:
        try:
            recorded = _record_as_it_is_or_exported(runner, leaves, kept.union(whole), remarks)
        except FxpruneError as error:
            first = first or error
            cause = error.__cause__
            path = cause.module if isinstance(cause, DataDependentError) else ""
            if path and path not in {*kept, *whole} and part_of(runner.model, path) < 0.5:
                whole.append(path)
            elif isinstance(first.__cause__, DataDependentError) and not runner.by_values:
                whole, runner.by_values = [], True
            else:
                raise first from first.__cause__
            continue
        if first is not None and runner.by_values and _follows_values(runner, recorded, leaves, kept.union(whole)):
            raise first from first.__cause__
        break
    kept.update(whole)
    remarks.extend(
        f"{STAYS_WHOLE}: the code of `{path}` follows the values of the input, which no graph can. What it gives "
        f"{_OTHER_SIZES}: the FLOPs of that part and of what follows are an estimate."
        for path in whole
    )
    if any("by_values" in node.meta for node in recorded.builder.graph.nodes) and runner.by_values:
        remarks.append(
            f"{SIZED_BY_VALUES}, as that of `x[mask]`. It {_OTHER_SIZES}: the FLOPs of what is computed from them are "
            "an estimate."
        )
    conditions = [f"`{node.args[2]}` in {node.args[3]}" for node in _conditions(recorded)] if runner.by_values else []
    if conditions:
        remarks.append(
            f"{CONDITIONS}, and the graph refuses inputs for which they are otherwise: {first_few(conditions, 3)}."
        )
    return recorded


_OTHER_SIZES = "may have another size for other values"


def _record_as_it_is_or_exported(runner: Runner, leaves: Leaves, kept: set[str], remarks: list[str]) -> Recording:
    try:
        return runner.record(leaves, kept)
    except FxpruneError as error:
        follows_values = isinstance(error.__cause__, DataDependentError)
        # A function may not run on the meta device, as `grouped_mm` in float32; models for export use others.
        if runner.exporting or not (follows_values or isinstance(error.__cause__, RuntimeError)):
            raise
        if runner.earlier_values.get(COMPILED):
            runner.exporting = "compiling"
            remarks.append(_AS_COMPILED)
            return runner.record(leaves, kept)
        runner.exporting = "exporting"
        try:
            recorded = runner.record(leaves, kept)
        except FxpruneError:
            runner.exporting = ""
            if follows_values:
                raise
            raise error from error.__cause__
        costs = _costs_otherwise(runner, recorded)
        compiled = _recorded_as_compiled(runner, leaves, kept) if costs else None
        if compiled is None:
            remarks.extend([AS_EXPORTED, *costs])
            return recorded
        runner.exporting = "compiling"
        remarks.append(_AS_COMPILED)
        return compiled


def _recorded_as_compiled(runner: Runner, leaves: Leaves, kept: set[str]) -> Recording | None:
    """A recording in which the code sees that it is compiled, and not exported; None where that costs otherwise."""
    other = replace(runner, exporting="compiling")
    with suppress(FxpruneError):
        recorded = other.record(leaves, kept)
        return None if _costs_otherwise(other, recorded) else replace(recorded, runner=runner)
    return None


def _costs_otherwise(runner: Runner, recorded: Recording) -> list[str]:
    """A remark where the way for torch.export or torch.compile has other FLOPs than the way that the model takes."""
    traced = assemble(runner.model, recorded.builder, lambda tensor: tensor.detach().clone())
    inputs = runner.kwargs or runner.args
    with suppress(FxpruneError):
        own, taken = count_flops(runner.model, inputs), count_flops(traced, inputs)
        if own != taken:
            remark = f"{OTHER_WAY} has {taken:,} FLOPs, and the one that the model takes {own:,}. "
            return [remark + "Budgets and counts of FLOPs are those of the graph."]
    return []


def _follows_values(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> bool:
    """Whether the code goes another way, or fails, where the values of the input are others."""
    if any(tensor.is_meta for tensor in parameters_and_buffers(runner.model)):
        return False
    generator = torch.Generator().manual_seed(0)
    others: tuple[Callable[[Tensor], Tensor], ...] = (
        torch.neg,
        lambda x: torch.randn(x.shape, generator=generator).to(x) * 3,
    )
    for other in others:

        def changed(x: Tensor, other: Callable[[Tensor], Tensor] = other) -> Tensor:
            return other(x) if x.is_floating_point() else x

        args, kwargs = trees.map_tensors(changed, (runner.args, runner.kwargs))
        try:
            there = replace(runner, args=args, kwargs=kwargs).record(leaves, kept)
        except FxpruneError:
            return True
        if _relied_on(recorded) != _relied_on(there):
            return True
    return False


def _relied_on(recorded: Recording) -> list[tuple[Any, Any]]:
    guards = needed_guards(recorded.builder, recorded.sizes)
    outcomes = [(check_outcome, node.args[1]) for node in _conditions(recorded)]
    return [*((guard.function, guard.traced) for guard in guards), *outcomes]


def _conditions(recorded: Recording) -> list[fx.Node]:
    """The checks of conditions on values."""
    return [node for node in recorded.builder.graph.nodes if node.target is check_outcome]

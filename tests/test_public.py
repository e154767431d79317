"""The public names and what they take: a change here is one for users, and belongs in the changelog."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import fxprune

# The arguments of functions, the fields of dataclasses, the bases of errors.
PUBLIC = {
    "Batch": "args, kwargs, labels, clusters, checked",
    "CannotScoreError": "FxpruneError",
    "ChannelGraph": (
        "module, labels, parameters, groups, frozen, flops, memory, costs, num_channels, contractions, held, blocks, "
        "no_blocks, optional, remarks, latency"
    ),
    "Dimension": "parameter, dim",
    "DivergenceError": "FxpruneError",
    "Epoch": "number, loss, lr, seconds, evaluation",
    "Frozen": "reason, channels, dimensions",
    "FxpruneError": "Exception",
    "FxpruneWarning": "UserWarning",
    "Gates": "scores, module, flops, losses, closed",
    "Group": "name, channels, dimensions, repeats, last_resort, common",
    "Latency": "seconds, spread, repeats, warmup, batch_size, threads, device, dtype, memory_format",
    "Plan": "kept, flops, flops_before, flops_target, latency_target, removed, params_target, memory_target",
    "PrunedParts": "model, plans, flops_before, flops, remarks",
    "Report": (
        "model, inputs, flops, flops_target, parameters, params_target, blocks, groups, frozen, layers, rows, "
        "compensated, samples, method, certificate, latency, latency_target, memory, memory_target, remarks, source"
    ),
    "UnreachableBudgetError": "FxpruneError",
    "analyze": "(traced)",
    "compensate": (
        "(original, pruned, data, *, ridge=True, moments=True, holdout=0.25, damping=(0.01, 0.1, 1.0, 4.0), "
        "positions=32768, seed=0, progress=False)"
    ),
    "count_flops": "(model, example_inputs=None)",
    "export": "(model, path, example_inputs=None, *, dynamic_batch=True, tolerance=None)",
    "finetune": (
        "(pruned, data, *, teacher=None, loss=None, epochs=1, lr=None, optimizer='sgd', schedule='cosine', "
        "warmup=0.0, weight_decay=0.0001, label_smoothing=0.0, temperature=2.0, distill_weight=0.5, batch_norm='auto', "
        "mixed_precision=None, gradient_accumulation=1, checkpoint=None, checkpoint_every=None, resume=True, "
        "seed=0, progress=True, evaluate=None, on_epoch=None)"
    ),
    "insert_gates": "(graph, *, last_resort=False, depth=False)",
    "learn_gates": (
        "(graph, data, *, flops=None, epochs=1, start='surgeon', lr=0.01, train_weights=True, weight_lr=0.01, "
        "temperature=1.0, last_resort=False, depth=False, ignore=(), checkpoint=None, checkpoint_every=20, "
        "resume=True, seed=0, progress=True)"
    ),
    "load": "(path, *, original=None, strict=True)",
    "make_plan": (
        "(graph, scores, *, flops=None, latency=None, params=None, memory=None, round_to=1, min_channels=1, ignore=(), "
        "without=())"
    ),
    "measure_latency": (
        "(model, example_inputs=None, *, batch_size=None, threads=None, device=None, warmup=5, repeats=30)"
    ),
    "plan_of": "(pruned)",
    "prune": (
        "(model, flops=None, *, latency=None, params=None, memory=None, example_inputs=None, data=None, method=None, "
        "compensate=True, samples=128, ignore=(), round_to='auto', min_channels=1, depth=None, width=True, "
        "quality='normal', seed=0, progress=True)"
    ),
    "prune_optimizer": "(original, pruned, optimizer)",
    "prune_parts": (
        "(model, flops=None, *, example_inputs, parts=None, data=None, method=None, compensate=True, samples=128, "
        "round_to='auto', seed=0, progress=True)"
    ),
    "remove_gates": "(gated)",
    "report": "(pruned, *, original=None, measure=True, repeats=10)",
    "restore_class": "(original, pruned, example_inputs=None)",
    "rewrite": "(graph, plan)",
    "save": "(pruned, path, *, source=None, **arguments)",
    "scores": "(graph, method='relevance', *, data=None, seed=0, progress=False)",
    "time_channels": (
        "(graph, example_inputs=None, *, batch_size=None, threads=None, device=None, warmup=5, repeats=15, "
        "progress=False)"
    ),
    "trace": "(model, example_inputs=None, *, copy=True, leaves=())",
    "verify": "(original, pruned, example_inputs=None, *, training=False)",
}


def described(value: Any) -> str:
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        bare = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        return str(signature.replace(parameters=bare, return_annotation=signature.empty))
    if dataclasses.is_dataclass(value):
        return ", ".join(field.name for field in dataclasses.fields(value))
    return str(value.__base__.__name__)


def test_the_public_names_take_what_they_took() -> None:
    assert {name: described(getattr(fxprune, name)) for name in fxprune.__all__} == PUBLIC


def test_only_modules_are_beside_the_public_names() -> None:
    others = {name for name in dir(fxprune) if not name.startswith("_")} - set(fxprune.__all__)
    assert all(inspect.ismodule(getattr(fxprune, name)) for name in others)


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in fxprune.__all__ if not inspect.getdoc(getattr(fxprune, name))] == []

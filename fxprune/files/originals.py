"""The original of a checkpoint without its weights: built, traced as it was when it was pruned, and pruned again.

Between the pruning and the loading a model may have changed in ways that do not matter: `forward` may have filled a
cache or registered a buffer in one of the two. So the model is tried as it is, after a call, and without its caches.
"""

from __future__ import annotations

from contextlib import suppress

import torch
from safetensors import SafetensorError
from torch import Tensor, fx, nn

from fxprune.analysis import analyze
from fxprune.errors import FxpruneError
from fxprune.files.record import damaged
from fxprune.files.sources import trusted_source
from fxprune.files.tensors import Checkpoint
from fxprune.models import load_model
from fxprune.rewriting import rewrite_in_stages
from fxprune.running.calls import Call
from fxprune.running.copies import copy_module, named_tensors
from fxprune.tracing.constants import forget, put
from fxprune.tracing.fingerprint import fingerprint
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace_knowing

__all__ = ["pruned_original"]


def pruned_original(checkpoint: Checkpoint, original: nn.Module | None, inputs: Call, strict: bool) -> fx.GraphModule:
    """The original, pruned by the plan of the checkpoint, with parameters on the meta device.

    Args:
        checkpoint: the open file.
        original: the model; default: the one that the file names.
        inputs: the call to trace it with.
        strict: whether its ops must be the recorded ones.

    Raises:
        FxpruneError: it is another model, the plan does not fit it, or the file does not say what it is.
    """
    if original is not None:
        return _pruned(checkpoint, original, type(original).__name__, inputs, strict)
    source = trusted_source(repr(str(checkpoint.path)), checkpoint.record.trace.source)
    try:
        with torch.device("meta"):
            model = load_model(source.spec, **source.arguments)
        return _pruned(checkpoint, model, source.spec, inputs, strict)
    except FxpruneError:
        # Some models compute with their buffers when they are built or traced.
        model = load_model(source.spec, **source.arguments)
        return _pruned(checkpoint, model, source.spec, inputs, strict)


def _pruned(checkpoint: Checkpoint, model: nn.Module, name: str, inputs: Call, strict: bool) -> fx.GraphModule:
    record, path, (args, kwargs) = checkpoint.record, str(checkpoint.path), inputs
    traced, difference = _traced(checkpoint, model, inputs, strict)
    if difference and record.trace.constant_places:
        # The original had run before it was pruned, and kept what this one does not have yet.
        with suppress(FxpruneError):
            has_run = _after_a_call(model, inputs)
            if has_run is not None:
                traced, difference = _traced(checkpoint, has_run, inputs, strict)
    if difference or traced is None:
        written_with = ", ".join(f"{library} {version}" for library, version in record.versions.items())
        raise FxpruneError(
            f"{path!r} is of a {record.pruning.original.model}, and {name} is another model: {difference}. Give the "
            f"original, built as it was, as original=; the file was written with {written_with}"
        )
    try:
        return rewrite_in_stages(
            analyze(traced),
            record.pruning,
            lambda stage: trace_knowing(
                stage, kwargs or args, record.trace.values_read, copy=False, leaves=record.trace.leaves
            ),
        )
    except FxpruneError as error:
        raise FxpruneError(f"{path!r}: its plan does not fit the model: {error}") from error


def _traced(
    checkpoint: Checkpoint, model: nn.Module, inputs: Call, strict: bool
) -> tuple[fx.GraphModule | None, str]:  # fmt: skip
    """The graph of a model without its weights, and in what it differs from the original, in words."""
    # Shapes are compared first: a misfit of weights says more than a call that fails.
    made = _made_by_forward(checkpoint, model)
    difference = checkpoint.record.pruning.original.misfit({**named_tensors(model), **made})
    if difference:
        return None, difference
    bare = _without_weights(checkpoint, model)
    for name, tensor in made.items():
        path, _, last = name.rpartition(".")
        bare.get_submodule(path).register_buffer(last, tensor, persistent=False)
    _put_constants(checkpoint, bare)
    traced, difference = _traced_as_saved(checkpoint, bare, inputs, strict)
    known = checkpoint.record.trace.constant_places
    caches = [place for name, place in trace_notes(traced).constant_places.items() if name not in known]
    if difference and caches:
        # The model has run since it was pruned, and keeps what it did not have then.
        for place in caches:
            forget(bare, place)
        with suppress(FxpruneError):
            return _traced_as_saved(checkpoint, bare, inputs, strict)
    return traced, difference


def _traced_as_saved(
    checkpoint: Checkpoint, bare: nn.Module, inputs: Call, strict: bool
) -> tuple[fx.GraphModule, str]:  # fmt: skip
    (args, kwargs), notes = inputs, checkpoint.record.trace
    traced = trace_knowing(bare, kwargs or args, notes.values_read, copy=False, leaves=notes.leaves)
    return traced, checkpoint.record.pruning.original.difference(fingerprint(traced), operations=strict)


def _after_a_call(model: nn.Module, inputs: Call) -> nn.Module | None:
    """A copy of a model after a call; None where it has no weights to run with, or fails."""
    if any(tensor.is_meta for tensor in named_tensors(model).values()):
        return None
    copied, (args, kwargs) = copy_module(model).eval(), inputs
    try:
        with torch.no_grad():
            copied(*args, **kwargs)
    except Exception:  # whatever the model's code raises
        return None
    return copied


def _made_by_forward(checkpoint: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """Buffers that forward makes or makes anew, of the shapes that the original had; they are in no state dict.

    Their values do not matter: the file has those of the pruned model.
    """
    modules, present = dict(model.named_modules()), named_tensors(model)
    made = {}
    for name, (shape, dtype) in checkpoint.record.pruning.original.tensors.items():
        path, _, last = name.rpartition(".")
        module = modules.get(path)
        if module is None or (name in present and tuple(present[name].shape) == shape):
            continue
        made_anew = last in module._buffers and last in module._non_persistent_buffers_set
        if made_anew or (not hasattr(module, last) and _registers(type(module), last)):
            made[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    return made


def _registers(kind: type, name: str) -> bool:
    """Whether some method of a class has the name as a string, as `register_buffer` takes it."""
    methods = (getattr(method, "__code__", None) for base in kind.__mro__ for method in vars(base).values())
    return any(code is not None and name in code.co_consts for code in methods)


def _put_constants(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Give a model what the original kept besides parameters and buffers, the caches that it had filled among it."""
    pruning = checkpoint.record.pruning
    try:
        for name, place in checkpoint.record.trace.constant_places.items():
            tensor = checkpoint.tensor(name)
            shape, _ = pruning.original.tensors.get(name, (tuple(tensor.shape), ""))
            put(model, place, pruning.plan.padded(name, tensor, shape))
    except (SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise damaged(checkpoint.path, error) from error


def _without_weights(checkpoint: Checkpoint, model: nn.Module) -> nn.Module:
    """A copy of the model with the dtypes that the original had, its parameters on the meta device.

    Buffers of integers are the file's: a permutation that was drawn at random ties channels to other ones.
    """
    original, there = checkpoint.record.pruning.original, set(checkpoint.file.keys())
    memo: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) in memo:
            continue
        dtype = getattr(torch, original.tensors[name][1]) if name in original.tensors else tensor.dtype
        if isinstance(tensor, nn.Parameter):
            data = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
            memo[id(tensor)] = nn.Parameter(data, data.is_floating_point() and tensor.requires_grad)
            continue
        is_index = dtype in (torch.int32, torch.int64) and tensor.ndim and checkpoint.stored(name) in there
        of_file = is_index and checkpoint.shape(name) == list(tensor.shape)
        memo[id(tensor)] = checkpoint.tensor(name) if of_file else tensor.detach().to(dtype)
    return copy_module(model, memo)

"""Save and load pruned models: one safetensors file that holds no code and is never unpickled.

The tensors are the small model's parameters and buffers under their names in it; those that are not in the `state_dict`
are there too, since a model that is built without weights cannot compute them. All else is JSON under one key of the
file's metadata: the plan, how the original is built if that is known, and its fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save as to_bytes
from torch import Tensor, fx, nn

from fxprune.analysis import analyze
from fxprune.errors import FxpruneError
from fxprune.files.packing import pack
from fxprune.files.record import FORMAT, KEY, OWN_META, Record, trusted_source, version_of
from fxprune.files.tensors import opened, put_tensors, read_tensors, refuse_what_is_no_tensor, unshared, unusual_strides
from fxprune.files.writing import replace_file
from fxprune.models import Source, load_model
from fxprune.planning.plan import plan_to_json
from fxprune.rewriting import plan_of, rewrite
from fxprune.running.copies import copy_module, named_tensors
from fxprune.tracing.constants import forget, put
from fxprune.tracing.fingerprint import Fingerprint, fingerprint
from fxprune.tracing.tracer import trace_knowing

__all__ = ["load", "save"]


def save(pruned: nn.Module, path: str | Path, *, source: str | None = None, **arguments: Any) -> None:
    """Write a pruned model to one safetensors file.

    The file holds the weights, the plan, the FLOPs before and after, the shapes of the example inputs (not their
    values), the versions and a fingerprint of the original architecture. It is written atomically: after a crash there
    is the previous file or the new one.

    Args:
        pruned: what `fxprune.prune` or `fxprune.rewrite` returned, compensated or fine-tuned since or not.
        path: the file, `model.safetensors` for example; its folder is made where it is missing.
        source: how the original is built, ``"timm:NAME"`` or ``"torchvision:NAME"``, so that `load` needs no model;
            default: what `fxprune.models.load_model` built it from, or what a timm model says of itself.
        arguments: for `timm.create_model` or `torchvision.models.get_model`, such as ``num_classes=10``.

    Raises:
        FxpruneError: the model was not made by fxprune, holds what cannot be stored, or the file cannot be written.
    """
    path = Path(path)
    plan, meta = plan_of(pruned), getattr(pruned, "meta", {})
    original = meta.get("original")
    if not isinstance(original, Fingerprint):
        raise FxpruneError(f"{type(pruned).__name__} has no fingerprint of its original: prune the model again")
    unsaved = [key for key, value in meta.get("values_read", {}).items() if value is None]
    if unsaved:
        raise FxpruneError(
            f"the code of {original.model} reads values of its parameters, too many or too special to be saved with "
            "the model: it could not be loaded. Save it with torch.save, or read single numbers as tensor.item() does"
        )
    tensors = named_tensors(pruned)
    refuse_what_is_no_tensor(pruned, tensors)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    stored = {name: tensors[name].detach() for name in first.values()}
    sizes: dict[str, Tensor] = {}
    inputs = pack(meta["example_inputs"], sizes, "inputs")
    record = {
        "format": FORMAT,
        "versions": {name: version_of(name) for name in ("fxprune", "torch", "timm", "torchvision")},
        "source": _source_to_json(source, arguments, meta.get("source")),
        "original": {
            "model": original.model,
            "tensors": {name: [list(shape), dtype] for name, (shape, dtype) in original.tensors.items()},
            "ties": [list(names) for names in original.ties],
            "operations": original.operations,
        },
        "plan": plan_to_json(plan),
        "inputs": {
            "structure": inputs,
            "tensors": {name: [list(x.shape), _dtype_name(x.dtype)] for name, x in sizes.items()},
        },
        "aliases": {name: first[id(tensor)] for name, tensor in tensors.items() if first[id(tensor)] != name},
        # Convolutions in channels_last sum in another order: the bits of the output depend on it.
        "strides": {name: strides for name, x in stored.items() if (strides := unusual_strides(x)) is not None},
        "frozen": [name for name, x in tensors.items() if isinstance(x, nn.Parameter) and not x.requires_grad],
        "training": [name for name, module in pruned.named_modules(remove_duplicate=False) if module.training],
        "meta": _plain({key: value for key, value in meta.items() if key not in OWN_META}),
    }
    header = {"format": "pt", KEY: json.dumps(record, separators=(",", ":"))}
    try:
        content = to_bytes({name: x.cpu().contiguous() for name, x in unshared(stored).items()}, metadata=header)
        replace_file(path, content)
    except (OSError, SafetensorError) as error:
        before = "; the previous one is whole" if path.is_file() else ""
        raise FxpruneError(f"checkpoint {str(path)!r} cannot be written: {error}{before}") from error


def load(path: str | Path, model: nn.Module | None = None, *, strict: bool = True) -> fx.GraphModule:
    """Read a pruned model that `save` has written.

    A fresh copy of the original is pruned by the recorded plan on the meta device, and the weights are put in. Nothing
    of the file is executed, and only timm and torchvision are asked for models.

    Args:
        path: the file.
        model: the original, with any weights; not changed. Default: what the file says it was, where that is a model
            of timm or torchvision.
        strict: whether the ops of the model must be those of the original. `False` lets another version of its code
            through; names and shapes must fit in any case. Then check the outputs.

    Returns:
        The pruned model on the CPU, as it was saved: weights, buffers, dtypes, training or eval mode, `plan_of`.

    Raises:
        FxpruneError: the file is not a checkpoint of fxprune, is damaged, or is not for this model.
    """
    path = Path(path)
    with opened(path) as file:
        record = Record.read(path, file)
        with torch.random.fork_rng(devices=[]):
            inputs = record.example_inputs(path)
            pruned = _fresh(path, record, file, model, inputs, strict)
        put_tensors(path, record, pruned, read_tensors(path, record, pruned, file))
    for name, module in pruned.named_modules(remove_duplicate=False):
        module.training = name in record.training
    pruned.meta.update(record.meta, original=record.original, source=record.source, example_inputs=inputs)
    return pruned


# --- the model that is pruned -----------------------------------------------------------------------------------------


def _fresh(
    path: Path,
    record: Record,
    file: Any,
    model: nn.Module | None,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    strict: bool,
) -> fx.GraphModule:
    """The original without weights, pruned."""
    if model is not None:
        return _pruned(path, record, file, model, type(model).__name__, inputs, strict)
    source = trusted_source(path, record.source)
    try:
        with torch.device("meta"):
            model = load_model(source.spec, **source.arguments)
        return _pruned(path, record, file, model, source.spec, inputs, strict)
    except FxpruneError:
        # Some models compute with their buffers when they are built or traced.
        model = load_model(source.spec, **source.arguments)
        return _pruned(path, record, file, model, source.spec, inputs, strict)


def _pruned(
    path: Path,
    record: Record,
    file: Any,
    model: nn.Module,
    name: str,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    strict: bool,
) -> fx.GraphModule:
    args, kwargs = inputs
    if args and kwargs:
        raise FxpruneError(f"{str(path)!r}: its record is damaged: the example inputs are given in two ways")
    traced, difference = _bare_and_traced(path, record, file, model, kwargs or args, strict)
    if difference and record.meta.get("constant_places"):
        # The original had run before it was pruned, and kept what this one does not yet.
        with suppress(FxpruneError):
            has_run = _that_has_run(model, args, kwargs)
            if has_run is not None:
                traced, difference = _bare_and_traced(path, record, file, has_run, kwargs or args, strict)
    if difference:
        theirs = ", ".join(f"{library} {version}" for library, version in record.versions.items())
        raise FxpruneError(
            f"{str(path)!r} is of a {record.original.model}, and {name} is another model: {difference}. Give the "
            f"original, built as it was, as model=; the file was written with {theirs}"
        )
    assert traced is not None
    try:
        return rewrite(analyze(traced), record.plan)
    except FxpruneError as error:
        raise FxpruneError(f"{str(path)!r}: its plan does not fit the model: {error}") from error


def _bare_and_traced(
    path: Path, record: Record, file: Any, model: nn.Module, inputs: Any, strict: bool
) -> tuple[fx.GraphModule | None, str]:
    """The graph of a model without its weights, and in what it differs from the original."""
    # Of weights that do not fit more can be said than of a call that fails.
    kept = _kept_by_forward(model, record)
    difference = record.original.misfit({**named_tensors(model), **kept})
    if difference:
        return None, difference
    bare = _without_weights(model, record, file)
    for name, tensor in kept.items():
        path_of_module, _, last = name.rpartition(".")
        bare.get_submodule(path_of_module).register_buffer(last, tensor, persistent=False)
    _put_constants(path, record, bare, file)
    return _traced_as_saved(record, bare, inputs, strict)


def _that_has_run(model: nn.Module, args: Any, kwargs: Any) -> nn.Module | None:
    """A copy of a model after a call; None where it has no weights to run with, or fails."""
    if any(tensor.is_meta for tensor in named_tensors(model).values()):
        return None
    copied = copy_module(model).eval()
    try:
        with torch.no_grad():
            copied(*args, **kwargs)
    except Exception:  # whatever the model's code raises
        return None
    return copied


def _traced_as_saved(record: Record, bare: nn.Module, inputs: Any, strict: bool) -> tuple[fx.GraphModule, str]:
    """The model traced, and in what it differs from the original."""

    def attempt() -> tuple[fx.GraphModule, str]:
        leaves = tuple(map(str, record.meta.get("leaves", ())))
        traced = trace_knowing(bare, inputs, record.meta.get("values_read", {}), copy=False, leaves=leaves)
        return traced, record.original.difference(fingerprint(traced), operations=strict)

    traced, difference = attempt()
    known = record.meta.get("constant_places", {})
    caches = [place for name, place in traced.meta.get("constant_places", {}).items() if name not in known]
    if difference and caches:
        # The model has run since it was pruned, and keeps what it did not keep then.
        for place in caches:
            forget(bare, place)
        with suppress(FxpruneError):
            return attempt()
    return traced, difference


def _kept_by_forward(model: nn.Module, record: Record) -> dict[str, Tensor]:
    """Buffers that forward makes or makes anew, as the original had them when it was pruned; they are in no state dict.

    The values do not matter: those of the pruned model are in the file.
    """
    modules, present = dict(model.named_modules()), named_tensors(model)
    kept = {}
    for name, (shape, dtype) in record.original.tensors.items():
        path, _, last = name.rpartition(".")
        module = modules.get(path)
        if module is None or (name in present and tuple(present[name].shape) == shape):
            continue
        made_anew = last in module._buffers and last in module._non_persistent_buffers_set
        if made_anew or (not hasattr(module, last) and _registers(type(module), last)):
            kept[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    return kept


def _registers(kind: type, name: str) -> bool:
    """Whether some method of a class has the name as a string, as `register_buffer` takes it."""
    methods = (getattr(method, "__code__", None) for base in kind.__mro__ for method in vars(base).values())
    return any(code is not None and name in code.co_consts for code in methods)


def _put_constants(path: Path, record: Record, model: nn.Module, file: Any) -> None:
    """What the original kept besides parameters and buffers, caches that it had filled among it."""
    try:
        dict(record.meta.get("values_read", {}))
        for name, place in record.meta.get("constant_places", {}).items():
            put(model, place, _of_original_size(record, name, file.get_tensor(record.aliases.get(name, name))))
    except (SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise FxpruneError(f"{str(path)!r}: its record is damaged: {error}; take another copy of the file") from error


def _of_original_size(record: Record, name: str, tensor: Tensor) -> Tensor:
    """A tensor of the pruned model with zeros in the places of the channels that went, which forward computes anew."""
    shape, _ = record.original.tensors.get(name, (tuple(tensor.shape), ""))
    for dim, kept in record.plan.kept.get(name, {}).items():
        size = (*tensor.shape[:dim], shape[dim], *tensor.shape[dim + 1 :])
        tensor = tensor.new_zeros(size).index_copy_(dim, torch.tensor(kept), tensor)
    return tensor


def _without_weights(model: nn.Module, record: Record, file: Any) -> nn.Module:
    """A copy of the model with the dtypes that the original had, its parameters on the meta device.

    Buffers of integers are the file's: by a permutation that was drawn at random, channels are tied to other ones.
    """
    original, there = record.original, set(file.keys())
    memo: dict[int, Any] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) in memo:
            continue
        dtype = getattr(torch, original.tensors[name][1]) if name in original.tensors else tensor.dtype
        if isinstance(tensor, nn.Parameter):
            data = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
            memo[id(tensor)] = nn.Parameter(data, data.is_floating_point() and tensor.requires_grad)
        else:
            stored = record.aliases.get(name, name)
            is_index = dtype in (torch.int32, torch.int64) and tensor.ndim and stored in there
            if is_index and file.get_slice(stored).get_shape() == list(tensor.shape):
                memo[id(tensor)] = file.get_tensor(stored)
            else:
                memo[id(tensor)] = tensor.detach().to(dtype)
    return copy_module(model, memo)


# --- what is written --------------------------------------------------------------------------------------------------


def _source_to_json(spec: str | None, arguments: Mapping[str, Any], known: Any) -> dict[str, Any] | None:
    if spec is None and arguments:
        raise FxpruneError(f"{', '.join(arguments)} given without source=: say which model they are for")
    source = Source(spec, arguments) if spec is not None else known
    if not isinstance(source, Source):
        return None
    try:
        as_json = json.loads(json.dumps({"spec": source.spec, "arguments": dict(source.arguments)}))
    except (TypeError, ValueError) as error:
        if spec is None:
            return None
        raise FxpruneError(f"the arguments of {spec} must be numbers, strings and lists: {error}") from error
    if spec is not None:
        trusted_source(Path("source"), Source(spec, as_json["arguments"]))
    return {"spec": as_json["spec"], "arguments": as_json["arguments"]}


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's notes are plain values; anything else is of the session, not of the model."""
    plain = {}
    for key, value in meta.items():
        tensors: dict[str, Tensor] = {}
        try:
            packed = pack(value, tensors, key)
        except FxpruneError:
            continue
        if not tensors:
            plain[key] = packed
    return plain


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

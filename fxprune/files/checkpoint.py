"""Save and load pruned models: one safetensors file that holds no code and is never unpickled.

The tensors are the pruned model's parameters and buffers under their names in it; those that are not in the
`state_dict` are there too, since a model that is built without weights cannot compute them. All else is JSON under one
key of the file's metadata (`fxprune.files.record`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError, called_as
from fxprune.files.originals import pruned_original
from fxprune.files.packing import pack
from fxprune.files.record import KEY, Record, kind_of, versions
from fxprune.files.sources import source_to_store
from fxprune.files.tensors import opened, put_tensors, read_tensors, storable, unusual_strides
from fxprune.files.writing import write_tensors
from fxprune.provenance import pruning_notes, set_pruning_notes
from fxprune.running.copies import named_tensors
from fxprune.running.devices import check_values
from fxprune.tracing.notes import set_trace_notes, trace_notes

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
    pruning, trace = pruning_notes(pruned), trace_notes(pruned)
    check_values("save", pruned)
    if None in trace.values_read.values():
        raise FxpruneError(
            f"the code of {pruning.original.model} reads values of its parameters, too many or too special to be saved "
            "with the model: it could not be loaded. Save it with torch.save, or read single numbers with tensor.item()"
        )
    tensors, aliases = storable(pruned)
    examples: dict[str, Tensor] = {}
    inputs = pack(trace.example_inputs, examples, "inputs")
    record = Record(
        pruning=pruning,
        trace=replace(trace, source=source_to_store(source, arguments, trace.source)),
        versions=versions(),
        inputs=inputs,
        input_kinds={name: kind_of(tensor) for name, tensor in examples.items()},
        aliases=aliases,
        # Convolutions in channels_last sum in another order: the bits of the output depend on it.
        strides={name: strides for name, x in tensors.items() if (strides := unusual_strides(x)) is not None},
        frozen=tuple(
            name
            for name, tensor in named_tensors(pruned).items()
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        ),
        training=tuple(name for name, module in pruned.named_modules(remove_duplicate=False) if module.training),
        more=getattr(pruned, "meta", {}),
    )
    write_tensors(Path(path), tensors, {"format": "pt", KEY: record.to_json()}, "checkpoint")


@called_as("load(path, original=model)")
def load(path: str | Path, *, original: nn.Module | None = None, strict: bool = True) -> fx.GraphModule:
    """Read a pruned model that `save` has written.

    The original is pruned by the recorded plan on the meta device, and gets the weights of the file. Nothing in the
    file is executed, and only models of timm and torchvision are built because a file says so.

    Args:
        path: the file.
        original: the model before pruning, with any weights; not changed. Default: the one that the file names, if it
            is a model of timm or torchvision.
        strict: whether the ops of the model must be those of the original. `False` accepts another version of its code;
            names and shapes must fit in any case. Then check the outputs.

    Returns:
        The pruned model on the CPU, as it was saved: weights, buffers, dtypes, training or eval mode, `plan_of`.

    Raises:
        FxpruneError: the file is not a checkpoint of fxprune, is damaged, or is not for this model.
    """
    path = Path(path)
    with opened(path) as checkpoint:
        record = checkpoint.record
        with torch.random.fork_rng(devices=[]):
            inputs = record.example_inputs(path)
            pruned = pruned_original(checkpoint, original, inputs, strict)
        put_tensors(checkpoint, pruned, read_tensors(checkpoint, pruned))
    training = set(record.training)
    for name, module in pruned.named_modules(remove_duplicate=False):
        module.training = name in training
    pruned.meta.update(record.more)
    set_trace_notes(pruned, replace(record.trace, example_inputs=inputs))
    set_pruning_notes(pruned, record.pruning)
    return pruned

"""Models that cannot be traced: which are known beforehand, and what an error on the way means."""

from __future__ import annotations

import keyword
from collections.abc import Iterator

import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.tracing.reading import DataDependentError
from fxprune.tracing.recording import Recorder
from fxprune.tracing.user_code import place_of

__all__ = ["explained", "refuse_what_cannot_be_traced"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def refuse_what_cannot_be_traced(model: nn.Module) -> None:
    """Say why a model cannot be traced, if that can be told by looking at it.

    Raises:
        FxpruneError: it cannot.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise FxpruneError(
            "Cannot trace a scripted module: its code is no Python any more. Prune the model before `torch.jit.script`."
        )
    scripted = next((path for path, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise FxpruneError(
            f"Cannot trace `{type(model).__name__}`: its part `{scripted}` is a scripted module, whose code is no "
            "Python any more. Put the module there that it was made of; prune the model before `torch.jit.script`."
        )
    inside = "module" if isinstance(model, _PARALLEL) else "_orig_mod" if hasattr(model, "_orig_mod") else None
    if inside is not None:
        raise FxpruneError(
            f"Cannot trace `{type(model).__name__}`, which runs another model in its own way. "
            f"Prune the model inside it, `model.{inside}`, and wrap the result again."
        )
    for path, kind in _not_plain(model):
        raise FxpruneError(
            f"Cannot trace `{type(model).__name__}`: `{path}` is of type {kind}, of which no channels can be taken. "
            "Prune the model before its weights are quantised or shared out."
        )
    names = (model.named_modules(), model.named_parameters(), model.named_buffers())
    for path in (path for named in names for path, _ in named):
        word = next((part for part in path.split(".") if keyword.iskeyword(part)), None)
        if word is not None:
            raise FxpruneError(
                f"Cannot trace `{type(model).__name__}`: in `{path}`, {word!r} is a keyword of Python, which the code "
                "of a torch.fx.GraphModule cannot have as a name. Rename it."
            )
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in ("graph", "code", "meta"):
            raise FxpruneError(
                f"Cannot trace `{type(model).__name__}`: its part `{name}` has the name of an attribute that every "
                "torch.fx.GraphModule has. Rename it, or trace the model inside another: `nn.Sequential(model)`."
            )


def _not_plain(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Weights that are more than a tensor, as those of torchao and of tensor-parallel models, and packed layers."""
    for path, parameter in model.named_parameters():
        if hasattr(type(parameter), "__tensor_flatten__"):
            yield path, type(parameter).__name__
    for path, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            kind = type(module)
            yield path, f"{kind.__module__}.{kind.__qualname__}"


def explained(model: nn.Module, recorder: Recorder, error: Exception) -> FxpruneError:
    """What an error in the model's code comes from, where, and what to do."""
    place, line = place_of(error)
    path = recorder.failed_in or ""
    module = f"`{path}`" if path else "the model itself"
    if path:
        module += f" ({type(model.get_submodule(path)).__name__})"
        way_out = f"`trace(..., leaves=({path!r},))` keeps that module whole."
    else:
        way_out = "Move it into a submodule, which `trace(..., leaves=...)` can keep whole."
    if isinstance(error, DataDependentError):
        cure = (
            "What depends on the values of the input cannot be part of a graph. Prune a part of the model that has "
            "nothing of the kind, as a detector's backbone: `model.backbone = prune(model.backbone, example_inputs=x)`."
        )
    elif line.startswith(("assert", "raise", "torch._assert", "_assert")):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in trees.tensors(list(recorder.example.values())))
        cure = f"The model refuses what it is given: pass example_inputs that it accepts; these are of shape {shapes}."
        way_out = f"If it accepts them when it is called as it is: {way_out}" if path else ""
    else:
        cure = "Check that the model runs on the example inputs."
        way_out = f"If it does: {way_out}"
    said = f"{type(error).__name__}: {error}".rstrip(":. ")
    where = f"{module}, {place}: `{line}`" if place else module
    message = f"Cannot trace `{type(model).__name__}`: in {where}: {said}. {cure} {way_out}"
    return FxpruneError(message.rstrip())

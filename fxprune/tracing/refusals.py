"""Models that cannot be traced: some are refused beforehand, and errors of others are explained."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.tracing.real_values import DataDependentError
from fxprune.tracing.user_code import place_of

__all__ = ["explained", "part_of", "refuse_what_cannot_be_traced"]

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def refuse_what_cannot_be_traced(model: nn.Module) -> None:
    """Check what makes a model untraceable before it runs.

    Raises:
        FxpruneError: it cannot be traced.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise FxpruneError(
            "Cannot trace a scripted module: its code is not Python any more. Prune the model before "
            "`torch.jit.script`."
        )
    scripted = next((path for path, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise FxpruneError(
            f"Cannot trace `{type(model).__name__}`: its part `{scripted}` is a scripted module, whose code is "
            "not Python any more. Put the original module there; prune the model before `torch.jit.script`."
        )
    inside = "module" if isinstance(model, _PARALLEL) else "_orig_mod" if hasattr(model, "_orig_mod") else None
    if inside is not None:
        raise FxpruneError(
            f"Cannot trace `{type(model).__name__}`, which wraps another model. "
            f"Prune the model inside it, `model.{inside}`, and wrap the result again."
        )
    for path, kind in _not_plain(model):
        raise FxpruneError(
            f"Cannot trace `{type(model).__name__}`: `{path}` is of type {kind}, which channels cannot be taken from. "
            "Prune the model before its weights are quantised or distributed."
        )
    names = (model.named_modules(), model.named_parameters(), model.named_buffers())
    for path in (path for named in names for path, _ in named):
        word = next((part for part in path.split(".") if keyword.iskeyword(part)), None)
        if word is not None:
            raise FxpruneError(
                f"Cannot trace `{type(model).__name__}`: in `{path}`, {word!r} is a keyword of Python, which is no "
                "name that the code of a torch.fx.GraphModule can use. Rename it."
            )
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in ("graph", "code", "meta"):
            raise FxpruneError(
                f"Cannot trace `{type(model).__name__}`: its part `{name}` has the name of an attribute of every "
                "torch.fx.GraphModule. Rename it, or trace the model inside another: `nn.Sequential(model)`."
            )


def _not_plain(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Packed layers, and weights that are not plain tensors, as those of torchao and of tensor-parallel models."""
    for path, parameter in model.named_parameters():
        if hasattr(type(parameter), "__tensor_flatten__"):
            yield path, type(parameter).__name__
    for path, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            kind = type(module)
            yield path, f"{kind.__module__}.{kind.__qualname__}"


def part_of(model: nn.Module, path: str) -> float:
    """The part of the model's parameters that a module has."""
    numbers = [sum(p.numel() for p in module.parameters()) for module in (model.get_submodule(path), model)]
    return numbers[0] / max(numbers[1], 1)


def explained(model: nn.Module, path: str, shapes: Sequence[tuple[int, ...]], error: Exception) -> FxpruneError:
    """The error to raise for one in the model's code: it says where that is, and what to do.

    Args:
        model: what is traced.
        path: the path of the module in which the error was raised.
        shapes: those of the example inputs.
        error: what was raised.
    """
    place, line = place_of(error)
    module = f"`{path}`" if path else "the model itself"
    if path:
        module += f" ({type(model.get_submodule(path)).__name__})"
        way_out = f"`trace(..., leaves=({path!r},))` keeps that module whole."
    else:
        way_out = "Move it into a submodule, which `trace(..., leaves=...)` can keep whole."
    if isinstance(error, DataDependentError) and error.drawn:
        cure = (
            "Random numbers decide there what the model does, in eval too. Draw them in training alone "
            "(`if self.training`), or set the probability of what is skipped to 0."
        )
    elif isinstance(error, DataDependentError):
        cure = (
            "Control flow that depends on the values of the input cannot be part of a graph. "
            "`fxprune.prune_parts(model, flops, example_inputs=...)` prunes the parts of the model without it, as a "
            "detector's backbone and heads; for one: `model.backbone = prune(model.backbone, example_inputs=x)`."
        )
    elif line.startswith(("assert", "raise", "torch._assert", "_assert")):
        given = ", ".join(map(str, shapes))
        cure = f"The model refuses these inputs, of shape {given}: pass example_inputs that it accepts."
        way_out = f"If it accepts them when it is not traced: {way_out}" if path else ""
    else:
        cure = "Check that the model runs on the example inputs."
        way_out = f"If it does: {way_out}"
    said = f"{type(error).__name__}: {error}".rstrip(":. ")
    where = f"{module}, {place}: `{line}`" if place else module
    message = f"Cannot trace `{type(model).__name__}`: in {where}: {said}. {cure} {way_out}"
    return FxpruneError(message.rstrip())

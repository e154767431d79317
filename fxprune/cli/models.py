"""Models and pruned models, as named in a command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.files.checkpoint import load
from fxprune.models import load_model
from fxprune.reporting.originals import rebuilt

__all__ = ["build", "inputs_of", "load_original", "load_pruned"]


def build(spec: str, arguments: Sequence[str] | None, weights: Path | None, pretrained: bool) -> nn.Module:
    """Build the model with this name, in eval mode."""
    # As for `python -m`, the user's own modules are found in the working folder.
    if "" not in sys.path:
        sys.path.insert(0, "")
    given = _arguments(arguments)
    if pretrained:
        given["pretrained"] = True
    model = load_model(spec, **given).eval()
    if weights is not None:
        _load_weights(model, weights)
    return model


def load_pruned(file: Path, spec: str | None, arguments: Sequence[str] | None) -> fx.GraphModule:
    """The pruned model in a file."""
    if spec is None and arguments:
        raise typer.BadParameter(
            "needs --model; without --model the arguments are read from the file", param_hint="--arg"
        )
    model = None if spec is None else build(spec, arguments, None, False)
    try:
        return load(file, original=model)
    except FxpruneError as error:
        raise FxpruneError(str(error).replace("as original=", "as --model MODEL")) from error


def load_original(
    pruned: nn.Module, spec: str | None, arguments: Sequence[str] | None, weights: Path | None, pretrained: bool
) -> nn.Module | None:
    """The original of a pruned model, with random weights unless some are given; None if its name is not known.

    Raises:
        FxpruneError: weights are given, but the original is not known.
    """
    if spec is not None:
        return build(spec, arguments, weights, pretrained)
    model = rebuilt(pruned, pretrained=pretrained)
    if model is None and (weights is not None or pretrained):
        raise FxpruneError(
            "--weights and --pretrained are for the original, but the file does not say what that is: give --model"
        )
    if model is not None and weights is not None:
        _load_weights(model, weights)
    return model


def inputs_of(shapes: Sequence[str] | None) -> tuple[Tensor, ...] | None:
    """Random inputs of these shapes, the same for each call; None if there are no shapes.

    Raises:
        typer.BadParameter: something is not a shape.
    """
    if not shapes:
        return None
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for shape in shapes:
        parts = shape.replace("x", ",").split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"{shape!r} is not a shape, such as 1,3,224,224", param_hint="--input")
        inputs.append(torch.randn([int(part) for part in parts], generator=generator))
    return tuple(inputs)


def _arguments(given: Sequence[str] | None) -> dict[str, Any]:
    """The values of KEY=VALUE pairs by key: read as JSON if possible, else strings."""
    arguments: dict[str, Any] = {}
    for pair in given or ():
        key, separator, value = pair.partition("=")
        if not separator or not key.isidentifier():
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE, such as num_classes=10", param_hint="--arg")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return arguments


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FxpruneError(f"--weights: {path} does not exist") from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FxpruneError(f"--weights: {path} cannot be loaded safely as a state dict: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FxpruneError(f"--weights: {path} holds a {type(state).__name__}, not a state dict of names and tensors")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FxpruneError(f"--weights: {path} does not fit the model: {error}") from error

"""The call that a model is tried with: its arguments, and the same at another batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.models import example_inputs as default_inputs
from fxprune.running import trees
from fxprune.running.devices import on_device_of

__all__ = [
    "Call",
    "batch_size_of",
    "call_arguments",
    "given_call",
    "has_batch",
    "with_batch",
]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


def call_arguments(inputs: Any) -> Call:
    """The call that `example_inputs` stand for: a tuple or list of arguments, a dict of keyword arguments, or one.

    Raises:
        FxpruneError: there is a numpy array among them.

    Examples:
        >>> call_arguments({"x": 1}), call_arguments([1, 2]), call_arguments(1)
        (((), {'x': 1}), ((1, 2), {}), ((1,), {}))
    """
    inputs = trees.map_leaves(_without_history, inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _without_history(leaf: Any) -> Any:
    """A tensor without its autograd history, which does not belong to an example and cannot be copied."""
    if isinstance(leaf, np.ndarray):
        raise FxpruneError(
            f"the inputs hold a numpy array of shape {leaf.shape}: models take tensors, give torch.from_numpy(array)"
        )
    return leaf.detach() if isinstance(leaf, Tensor) and leaf.grad_fn is not None else leaf


def given_call(model: nn.Module, example_inputs: Any = None) -> Call:
    """The call of the inputs given, or else of those that the model is made for; on the model's device."""
    call = call_arguments(default_inputs(model) if example_inputs is None else example_inputs)
    return on_device_of(model, call)


def batch_size_of(call: Call) -> int | None:
    """The first dimension of the first tensor, which is the batch in most models; None if there is none."""
    first = next(iter(trees.tensors(call)), None)
    return None if first is None or not first.dim() else len(first)


def has_batch(leaf: object, size: int | None) -> bool:
    """Whether an argument has the batch as its first dimension."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def with_batch(call: Call, size: int, batch: int) -> Call:
    """A call whose batch of `size` samples is cut or repeated to `batch`; repeated samples are scaled differently."""

    def resize(tensor: Tensor) -> Tensor:
        if not has_batch(tensor, size):
            return tensor
        taken = tensor[torch.arange(batch, device=tensor.device) % size]
        if tensor.is_floating_point() and batch > size:
            factor = torch.linspace(1.0, 0.7, batch, device=tensor.device).to(tensor.dtype)
            taken = taken * factor.reshape(-1, *[1] * (tensor.dim() - 1))
        return taken

    return trees.map_tensors(resize, call)

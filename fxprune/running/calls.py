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

__all__ = ["Call", "call_arguments", "first_dimension", "given_call", "has_batch", "with_batch"]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def call_arguments(inputs: Any) -> Call:
    """Positional and keyword arguments: of a tuple or list the entries, of a mapping the values by name.

    Raises:
        FxpruneError: an array of numpy is among them.
    """
    inputs = trees.map_leaves(_without_history, inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _without_history(leaf: Any) -> Any:
    """A tensor without what it was computed from, which is no part of an example and cannot be copied."""
    if isinstance(leaf, np.ndarray):
        raise FxpruneError(
            f"the inputs hold an array of numpy, of shape {leaf.shape}: models take tensors, "
            "give torch.from_numpy(array)"
        )
    return leaf.detach() if isinstance(leaf, Tensor) and leaf.grad_fn is not None else leaf


def given_call(model: nn.Module, example_inputs: Any = None) -> Call:
    """Positional and keyword arguments, beside the model: those given, or those it is made for."""
    call = call_arguments(default_inputs(model) if example_inputs is None else example_inputs)
    return on_device_of(model, call)


def first_dimension(call: Call) -> int | None:
    """The size of the first dimension of the first tensor: the batch, as most models have it."""
    first = next(iter(trees.tensors(call)), None)
    return None if first is None or not first.dim() else len(first)


def has_batch(leaf: Any, size: int | None) -> bool:
    """Whether an argument has the batch as its first dimension."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size


def with_batch(call: Call, size: int, batch: int) -> Call:
    """A call whose batch of `size` samples is cut or filled to `batch`, no two of them alike."""

    def resize(leaf: Any) -> Any:
        if not has_batch(leaf, size):
            return leaf
        taken = leaf[torch.arange(batch, device=leaf.device) % size]
        if leaf.is_floating_point() and batch > size:
            factor = torch.linspace(1.0, 0.7, batch, device=leaf.device).to(leaf.dtype)
            taken = taken * factor.reshape(-1, *[1] * (leaf.dim() - 1))
        return taken

    return trees.map_leaves(resize, call)

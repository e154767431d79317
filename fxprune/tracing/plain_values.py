"""Values in plain types, as a checkpoint keeps those that a trace has read of a model."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn.utils.rnn import PackedSequence

from fxprune.tracing.spelling import name_of, spell

__all__ = ["digest", "in_plain_types", "layout_in_plain_types", "restored"]

# A model asks for numbers, not for its weights. Not tuned.
_MOST_ENTRIES = 10_000


def digest(node: fx.Node) -> str:
    """The same for two nodes, also of different traces, that are computed alike from parameters, buffers and inputs."""
    digests: dict[fx.Node, str] = {}
    stack = [node]
    while stack:
        current = stack[-1]
        missing = [given for given in current.all_input_nodes if given not in digests]
        stack.extend(missing)
        if not missing:
            stack.pop()
            target = current.target if isinstance(current.target, str) else name_of(current.target)
            text = f"{current.op} {target} {spell((current.args, current.kwargs), digests)}"
            digests[current] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests[node]


def in_plain_types(value: Any) -> Any:
    """A value as numbers, strings, lists and dicts; None where it has too many entries, or other ones."""
    if isinstance(value, Tensor):
        if value.numel() > _MOST_ENTRIES or value.is_complex():
            return None
        return {**layout_in_plain_types(value), "entries": value.detach().flatten().tolist()}
    return {"number": value} if isinstance(value, (bool, int, float)) else None


def layout_in_plain_types(value: Any) -> Any:
    """The sizes and types of the tensors of a value, likewise."""
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, PackedSequence):
        return {"packed": [layout_in_plain_types(item) for item in value]}
    if isinstance(value, (tuple, list)):
        return [layout_in_plain_types(item) for item in value]
    return {"number": value} if value is None or isinstance(value, (bool, int, float)) else None


def restored(plain: Any) -> Any:
    """The value again; tensors of which only the layout is known are on the meta device."""
    if isinstance(plain, list):
        return tuple(map(restored, plain))
    if "packed" in plain:
        # Its own constructor needs tensors with values.
        return cast(Any, PackedSequence)._make(map(restored, plain["packed"]))
    if "number" in plain:
        return plain["number"]
    dtype = getattr(torch, plain["dtype"])
    if "entries" in plain:
        return torch.tensor(plain["entries"], dtype=dtype).reshape(plain["shape"])
    return torch.empty(plain["shape"], dtype=dtype, device="meta")

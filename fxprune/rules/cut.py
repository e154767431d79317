"""Ops that cut a dimension into parts, or take a part of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, labels_in
from fxprune.rules.op import BY_SIZE, Op, axis
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__: list[str] = []


def _unmoved(op: Op, tensor: Labels, d: int) -> Dim:
    """A dimension to cut. It is frozen if the place, or what is there, depends on the batch or the resolution.

    Such a place cannot be rewritten as a number.
    """
    dim = tensor.dims[d]
    if isinstance(dim, int) or (all(map(op.is_static, op.node.all_input_nodes[1:])) and not op.varies(tensor, d)):
        return dim
    op.freeze(dim, BY_SIZE)
    return len(dim)


@rule("split", "chunk", "tensor_split", "split_with_sizes")
def split(op: Op, tensor: Labels, *arguments: Any, dim: int = 0, **options: object) -> tuple[Labels, ...]:
    dim = axis(tensor, arguments[1] if len(arguments) > 1 else dim)
    sizes = [part.shape[dim] for part in op.value]
    bounds = np.cumsum([0, *sizes])
    ids = _unmoved(op, tensor, dim)
    return tuple(
        tensor.replace(dim, op.part(ids, slice(start, start + size)))
        for start, size in zip(bounds[:-1], sizes, strict=True)
    )


@split.rewrite
def _(op: Rewrite, tensor: fx.Node, *arguments: Argument, dim: Argument = 0, **options: Argument) -> Call | None:
    x = op.labels(tensor)
    d = op.number(arguments[1] if len(arguments) > 1 else dim) % len(x.dims)
    if not op.changed(x.dims[d]):
        return None
    sizes = [op.size(part.dims[d]) for part in labels_in(op.labels_of[op.node.name])]
    return Call((tensor, sizes, d), target="split" if op.node.op == "call_method" else torch.split)


@rule("unbind")
def unbind(op: Op, input: Labels, dim: int = 0) -> tuple[Labels, ...]:
    dim = axis(input, dim)
    op.freeze(input.dims[dim], "unbound")
    one = input.take(d for d in range(len(input.dims)) if d != dim)
    return (one,) * input.shape[dim]


@rule("narrow")
def narrow(op: Op, input: Labels, dim: int, start: int, length: int) -> Labels:
    dim = axis(input, dim)
    start %= input.shape[dim]
    return input.replace(dim, op.part(_unmoved(op, input, dim), slice(start, start + length)))


@narrow.rewrite
def _(op: Rewrite, input: fx.Node, dim: Argument, start: Argument, length: Argument) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    kept, first = op.kept(ids), op.number(start) % len(ids)
    return Call((input, dim, int(kept[:first].sum()), int(kept[first : first + op.number(length)].sum())))


@rule("select")
def select(op: Op, input: Labels, dim: int, index: int) -> Labels:
    dim = axis(input, dim)
    ids = input.dims[dim]
    if not isinstance(ids, int):
        _unmoved(op, input, dim)
        op.freeze(ids[[index]], "selected by number")
    return input.take(d for d in range(len(input.dims)) if d != dim)


@select.rewrite
def _(op: Rewrite, input: fx.Node, dim: Argument, index: Argument) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    return Call((input, dim, int(op.kept(ids)[: op.number(index) % len(ids)].sum())))

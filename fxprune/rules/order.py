"""Ops that reorder dimensions, add or drop dimensions of one entry, or move entries along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Labels, size_of
from fxprune.ops import name_of_op
from fxprune.rules.op import Op, axis
from fxprune.rules.registry import rule
from fxprune.rules.reshape import flat
from fxprune.rules.rewrite import Call, Rewrite

__all__: list[str] = []


@rule("permute")
def permute(op: Op, input: Labels, *dims: Any, **options: Any) -> Labels:
    order = flat(dims) if dims else options["dims"]
    return input.take(d % len(input.dims) for d in order)


@rule("transpose", "swapdims", "t", "mT", "adjoint")
def transpose(op: Op, input: Labels, dim0: int = -2, dim1: int = -1) -> Labels:
    order = list(range(len(input.dims)))
    if len(order) > 1:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return input.take(order)


@rule("swapaxes")
def swapaxes(op: Op, input: Labels, axis0: int, axis1: int) -> Labels:
    return transpose.propagate(op, input, axis0, axis1)


@rule("movedim", "moveaxis")
def movedim(op: Op, input: Labels, source: Any, destination: Any) -> Labels:
    order = torch.empty(*range(1, len(input.dims) + 1), device="meta").movedim(source, destination).shape
    return input.take(n - 1 for n in order)


@rule("squeeze")
def squeeze(op: Op, input: Labels, dim: Any = None) -> Labels:
    rank = len(input.dims)
    chosen = (
        range(rank) if dim is None else [d % rank for d in (dim if isinstance(dim, (tuple, list)) else (dim,)) if rank]
    )
    return input.take(d for d in range(rank) if not (d in chosen and size_of(input.dims[d]) == 1))


@squeeze.rewrite
def _(op: Rewrite, input: fx.Node, dim: Argument = None) -> Call | None:
    """A channel dimension that has one entry left is not squeezed."""
    x, given = op.labels(input), op.number(dim)
    chosen = range(len(x.dims)) if given is None else given if isinstance(given, (tuple, list)) else (given,)
    if not any(op.changed(x.dims[d]) and op.size(x.dims[d]) == 1 for d in chosen):
        return None
    return Call((input, tuple(d for d in chosen if not op.changed(x.dims[d]))))


@rule("unsqueeze")
def unsqueeze(op: Op, input: Labels, dim: int) -> Labels:
    at = dim % (len(input.dims) + 1)
    return Labels((*input.dims[:at], 1, *input.dims[at:]), (*input.zero[:at], False, *input.zero[at:]))


@rule("flip", "roll")
def rolled(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    given = arguments[1] if len(arguments) > 1 else None
    dims = options.get("dims", given if name_of_op(op.node.target) == "roll" else flat(arguments))
    for d in range(len(input.dims)) if dims is None else (dims if isinstance(dims, (tuple, list)) else (dims,)):
        op.freeze(input.dims[axis(input, d)], "rolled or flipped along")
    return input

"""Ops that repeat entries: expand, repeat, interleave, broadcast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, Labels, size_of
from fxprune.rules.elementwise import broadcast
from fxprune.rules.op import Op, axis
from fxprune.rules.registry import rule
from fxprune.rules.reshape import flat, size_entries
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["copies"]


def _plain(op: Op, input: Labels) -> tuple[int, list[Dim], list[bool]]:
    """How many dimensions are added in front, and the dimensions of the output before any has channels."""
    return len(op.shape) - len(input.dims), list(op.shape), [False] * len(op.shape)


@rule("expand", "broadcast_to")
def expand(op: Op, input: Labels, *sizes: object, **options: object) -> Labels:
    lead, dims, zero = _plain(op, input)
    for d, dim in enumerate(input.dims):
        if size_of(dim) == dims[lead + d]:
            dims[lead + d], zero[lead + d] = dim, input.zero[d]
    arguments = flat(op.node.args[1:]) or op.node.kwargs.get("size")
    for d, n in enumerate(arguments if isinstance(arguments, (tuple, list)) and len(arguments) == len(dims) else ()):
        # Copies of one entry: as many as there are channels in what they meet.
        repeated = d < lead or size_of(input.dims[d - lead]) == 1
        if repeated and op.shape[d] > 1 and op.is_static(n):
            dims[d] = op.ids.fresh(op.shape[d])
    return Labels(tuple(dims), tuple(zero))


@expand.rewrite
def _(op: Rewrite, input: fx.Node, *sizes: Argument, **options: Argument) -> Call | None:
    if not any(op.changed(dim) for dim in op.out.dims):
        return None
    entries = size_entries(op, sizes or (options["size"],))
    pairs = zip(entries, op.out.dims, strict=True)
    return Call((input, tuple(op.size(dim) if op.changed(dim) else n for n, dim in pairs)))


@rule("expand_as")
def expand_as(op: Op, input: Labels, other: Labels) -> Labels:
    lead = len(other.dims) - len(input.dims)
    dims, zero = list(other.dims), [False] * len(other.dims)
    for d, dim in enumerate(input.dims):
        if size_of(dim) > 1:
            dims[lead + d], zero[lead + d] = op.unite(dim, other.dims[lead + d]), input.zero[d]
    return Labels(tuple(dims), tuple(zero))


@rule("broadcast_tensors")
def broadcast_tensors(op: Op, *tensors: Any) -> tuple[Labels, ...]:
    operands = list(flat(tensors))
    dims = broadcast(op, operands)
    return tuple(Labels(dims, _zeros_behind(x, len(dims))) for x in operands)


def _zeros_behind(x: Labels, rank: int) -> tuple[bool, ...]:
    """The dimensions that are zero after `x` is broadcast to more dimensions; copies of one entry are not zero."""
    lead = rank - len(x.dims)
    return (*(False,) * lead, *(zero and size_of(dim) > 1 for dim, zero in zip(x.dims, x.zero, strict=True)))


@rule("repeat", "tile")
def repeat(op: Op, input: Labels, *sizes: object, **options: object) -> Labels:
    lead, dims, zero = _plain(op, input)
    for d, dim in enumerate(input.dims):
        if not isinstance(dim, int):
            dims[lead + d], zero[lead + d] = np.tile(dim, dims[lead + d] // len(dim)), input.zero[d]
    entries = _repeats(op.node.args[1:], op.node.kwargs, len(dims))
    for d, n in enumerate(entries):
        dim = 1 if d < lead else input.dims[d - lead]
        made = copies(op, dim, op.shape[d] // max(size_of(dim), 1), n)
        if made is not None:
            dims[d], zero[d] = np.repeat(made, size_of(dim)), False
    return Labels(tuple(dims), tuple(zero))


def copies(op: Op, dim: Dim, times: int, argument: Argument) -> Ids | None:
    """New channels, one for each copy of a dimension, so that there are as many copies as channels in what they meet.

    This is for copies of one entry, and for copies of few entries that do not depend on the model's input, such as a
    fixed kernel that is repeated for each channel.

    Args:
        op: the op that copies.
        dim: the dimension that is copied.
        times: how many copies there are.
        argument: the argument that says so.

    Returns:
        None where the copies have the channels of the dimension itself.
    """
    few = size_of(dim) < times and op.node.all_input_nodes[0] not in op.state.input_dependent
    if times == 1 or not op.is_static(argument) or not (size_of(dim) == 1 or few):
        return None
    op.freeze(dim, "repeated as a whole")
    return op.ids.fresh(times)


def _repeats(arguments: tuple[Argument, ...], options: Mapping[str, Argument], rank: int) -> tuple[Argument, ...]:
    """How often each dimension is repeated; leading dimensions that are not named are repeated once."""
    given = flat(arguments) if arguments else next(iter(options.values()))
    return (*(1,) * (rank - len(given)), *given) if isinstance(given, (tuple, list)) else ()


@repeat.rewrite
def _(op: Rewrite, input: fx.Node, *sizes: Argument, **options: Argument) -> Call | None:
    x, out = op.labels(input), op.out
    lead = len(out.dims) - len(x.dims)
    new = list(_repeats(sizes, options, len(out.dims)))
    touched = False
    for d, dim in enumerate(out.dims):
        repeated = 1 if d < lead else x.dims[d - lead]
        if op.changed(dim) and not op.changed(repeated):
            new[d], touched = op.size(dim) // size_of(repeated), True
    return Call((input, tuple(new))) if touched else None


@rule("repeat_interleave")
def repeat_interleave(op: Op, input: Labels, repeats: object, dim: int | None = None, **options: object) -> Labels:
    if not isinstance(repeats, int) or dim is None:
        op.freeze((input, repeats), "repeated unevenly")
        return Labels.plain(op.shape)
    dim = axis(input, dim)
    ids = input.dims[dim]
    made = copies(op, ids, repeats, op.node.kwargs.get("repeats", op.node.args[-1]))
    if made is not None:
        return input.replace(dim, np.tile(made, size_of(ids)), zero=False)
    return input.replace(dim, op.shape[dim] if isinstance(ids, int) else np.repeat(ids, repeats))


@repeat_interleave.rewrite
def _(op: Rewrite, input: fx.Node, repeats: Argument, dim: Argument = None, **options: Argument) -> Call | None:
    if dim is None:
        return None
    repeated, out = op.labels(input).dims[op.number(dim)], op.out.dims[op.number(dim)]
    if not op.changed(out) or op.changed(repeated):
        return None
    return Call((input, op.size(out) // size_of(repeated), dim), options)

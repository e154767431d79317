"""Ops that reorder, repeat, join and cut dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.channels import Dim, Ids, Labels, is_labelled, size_of
from fxprune.rules.elementwise import broadcast
from fxprune.rules.registry import Call, Op, Rewrite, freeze_labels, rule
from fxprune.rules.reshape import flat, size_entries

__all__: list[str] = []


@rule("permute")
def permute(op: Op, input: Labels, *dims: Any, **options: Any) -> Labels:
    order = flat(dims) if dims else options["dims"]
    return input.take(d % len(input.dims) for d in order)


@rule("transpose", "swapdims", "t", "mT", "adjoint")
def transpose(op: Op, input: Labels, dim0: int = -2, dim1: int = -1) -> Labels:
    order = list(range(len(input.dims)))
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
    chosen = range(rank) if dim is None else [d % rank for d in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    return input.take(d for d in range(rank) if not (d in chosen and size_of(input.dims[d]) == 1))


@squeeze.rewrite
def _(op: Rewrite, input: Any, dim: Any = None) -> Call | None:
    """A dimension that has one channel left is a dimension still."""
    x, dim = op.labels(input), op.number(dim)
    chosen = range(len(x.dims)) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    if not any(op.changed(x.dims[d]) and op.size(x.dims[d]) == 1 for d in chosen):
        return None
    return Call((input, tuple(d for d in chosen if not op.changed(x.dims[d]))))


@rule("unsqueeze")
def unsqueeze(op: Op, input: Labels, dim: int) -> Labels:
    at = dim % (len(input.dims) + 1)
    return Labels((*input.dims[:at], 1, *input.dims[at:]), (*input.zero[:at], False, *input.zero[at:]))


@rule("flip", "roll")
def rolled(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    by_roll = "roll" in str(op.node.target)
    given = (arguments[1] if len(arguments) > 1 else None) if by_roll else flat(arguments)
    dims = options.get("dims", given)
    for d in range(len(input.dims)) if dims is None else (dims if isinstance(dims, (tuple, list)) else (dims,)):
        op.freeze(input.dims[d], "rolled or flipped along")
    return input


@rule("expand", "broadcast_to")
def expand(op: Op, input: Labels, *sizes: Any, **options: Any) -> Labels:
    lead = len(op.shape) - len(input.dims)
    dims: list[Dim] = list(op.shape)
    zero = [False] * len(dims)
    for d, dim in enumerate(input.dims):
        if size_of(dim) == dims[lead + d]:
            dims[lead + d], zero[lead + d] = dim, input.zero[d]
    arguments = flat(tuple(op.node.args[1:])) or op.node.kwargs.get("size")
    for d, n in enumerate(arguments if isinstance(arguments, (tuple, list)) and len(arguments) == len(dims) else ()):
        # Copies of one entry: as many as there are channels where it goes.
        repeated = d < lead or size_of(input.dims[d - lead]) == 1
        if repeated and op.shape[d] > 1 and op.is_static(n):
            dims[d] = op.ids.fresh(op.shape[d])
    return Labels(tuple(dims), tuple(zero))


@expand.rewrite
def _(op: Rewrite, input: Any, *sizes: Any, **options: Any) -> Call | None:
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
    """Which dimensions of a tensor of more dimensions are zero where those of `x` are; copies of one entry are not."""
    lead = rank - len(x.dims)
    return (*(False,) * lead, *(zero and size_of(dim) > 1 for dim, zero in zip(x.dims, x.zero, strict=True)))


@rule("repeat", "tile")
def repeat(op: Op, input: Labels, *sizes: Any, **options: Any) -> Labels:
    lead = len(op.shape) - len(input.dims)
    dims: list[Dim] = list(op.shape)
    zero = [False] * len(dims)
    for d, dim in enumerate(input.dims):
        if not isinstance(dim, int):
            dims[lead + d], zero[lead + d] = np.tile(dim, dims[lead + d] // len(dim)), input.zero[d]
    entries = _repeats(op.node.args[1:], op.node.kwargs, len(dims))
    for d, n in enumerate(entries):
        dim = 1 if d < lead else input.dims[d - lead]
        copies = _copies(op, dim, op.shape[d] // max(size_of(dim), 1), n)
        if copies is not None:
            dims[d], zero[d] = np.repeat(copies, size_of(dim)), False
    return Labels(tuple(dims), tuple(zero))


def _copies(op: Op, dim: Dim, times: int, argument: Any) -> Ids | None:
    """New channels, one for each copy of a dimension: as many as there are where it goes; None where it has its own.

    So are copies of one entry, and of few entries that do not depend on the model's input, as those of a fixed kernel.
    """
    few = size_of(dim) < times and op.node.all_input_nodes[0] not in op.input_dependent
    if times == 1 or not op.is_static(argument) or not (size_of(dim) == 1 or few):
        return None
    op.freeze(dim, "repeated as a whole")
    return op.ids.fresh(times)


def _repeats(arguments: Any, options: Any, rank: int) -> tuple[Any, ...]:
    """How often each dimension is repeated, dimensions that are not named first."""
    given = flat(tuple(arguments)) if arguments else next(iter(options.values()))
    return (*(1,) * (rank - len(given)), *given) if isinstance(given, (tuple, list)) else ()


@repeat.rewrite
def _(op: Rewrite, input: Any, *sizes: Any, **options: Any) -> Call | None:
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
def repeat_interleave(op: Op, input: Labels, repeats: Any, dim: int | None = None, **options: Any) -> Labels:
    if not isinstance(repeats, int) or dim is None:
        freeze_labels(op, (input, repeats), "repeated unevenly")
        return Labels.plain(op.shape)
    ids, dim = input.dims[dim], dim % len(input.dims)
    copies = _copies(op, ids, repeats, op.node.kwargs.get("repeats", op.node.args[-1]))
    if copies is not None:
        return input.replace(dim, np.tile(copies, size_of(ids)), zero=False)
    return input.replace(dim, op.shape[dim] if isinstance(ids, int) else np.repeat(ids, repeats))


@repeat_interleave.rewrite
def _(op: Rewrite, input: Any, repeats: Any, dim: Any = None, **options: Any) -> Call | None:
    if dim is None:
        return None
    repeated, out = op.labels(input).dims[op.number(dim)], op.out.dims[op.number(dim)]
    if not op.changed(out) or op.changed(repeated):
        return None
    return Call((input, op.size(out) // size_of(repeated), dim), options)


@rule("cat", "concat", "concatenate")
def cat(op: Op, tensors: Any, dim: int = 0) -> Labels:
    """Of a fixed tensor again and again it is as `repeat`."""
    out = _joined(op, tensors, dim)
    dim %= len(out.dims)
    if _is_repeated(op.node) and op.node.all_input_nodes[0] not in op.input_dependent:
        copies = _copies(op, tensors[0].dims[dim], len(tensors), len(tensors))
        if copies is not None:
            return out.replace(dim, np.repeat(copies, size_of(tensors[0].dims[dim])), zero=False)
    return out


def _is_repeated(node: fx.Node) -> bool:
    tensors = node.args[0] if node.args else node.kwargs["tensors"]
    return isinstance(tensors, (list, tuple)) and len(tensors) > 1 and len(set(tensors)) == 1


@cat.rewrite
def _(op: Rewrite, tensors: Any, dim: Any = 0) -> Call | None:
    joined = op.out.dims[op.number(dim)]
    if not _is_repeated(op.node) or not op.changed(joined):
        return None
    repeated = op.labels(tensors[0]).dims[op.number(dim)]
    if op.changed(repeated):
        return None
    return Call((tensors[: op.size(joined) // size_of(repeated)], dim))


def _joined(op: Op, tensors: Any, dim: int) -> Labels:
    tensors = [x for x in tensors if x.shape != (0,)]
    rank = len(tensors[0].dims)
    dim %= rank
    dims: list[Dim] = []
    zero: list[bool] = []
    for d in range(rank):
        parts = [x.dims[d] for x in tensors]
        if d != dim:
            first = parts[0]
            for part in parts[1:]:
                first = op.unite(first, part) if size_of(first) > 1 else first
            dims.append(first)
        elif any(is_labelled(part) for part in parts):
            dims.append(np.concatenate([_fixed(op, part) if isinstance(part, int) else part for part in parts]))
        else:
            dims.append(sum(size_of(part) for part in parts))
        carrying = [x for x in tensors if is_labelled(x.dims[d])] if d == dim else tensors
        zero.append(bool(carrying) and all(x.zero[d] for x in carrying))
    return Labels(tuple(dims), tuple(zero))


@rule("vstack", "row_stack", "hstack", "dstack")
def cat_along_its_own(op: Op, tensors: Any) -> Labels:
    """A `cat` whose name tells the dimension; what has fewer dimensions than that gets some first."""
    dim = {"hstack": 1, "dstack": 2}.get(op.name, 0)
    if min(len(x.dims) for x in tensors) <= max(dim, 1):
        freeze_labels(op, tensors, "stacked along a dimension of its own")
        return Labels.plain(op.shape)
    return _joined(op, tensors, dim)


def _fixed(op: Op, n: int) -> Any:
    ids = op.ids.fresh(n)
    op.freeze(ids, "joined to channels, but is none")
    return ids


@rule("stack")
def stack(op: Op, tensors: Any, dim: int = 0) -> Labels:
    dim %= len(tensors[0].dims) + 1
    first = tensors[0]
    for x in tensors[1:]:
        for a, b in zip(first.dims, x.dims, strict=True):
            if size_of(a) > 1:
                op.unite(a, b)
    dims: list[Dim] = list(first.dims)
    zero = [all(x.zero[d] for x in tensors) for d in range(len(dims))]
    for d, choices in enumerate(zip(*(x.dims for x in tensors), strict=True)):
        dims[d] = next((c for c in choices if is_labelled(c)), dims[d])
    return Labels((*dims[:dim], len(tensors), *dims[dim:]), (*zero[:dim], False, *zero[dim:]))


def _unmoved(op: Op, dim: Dim) -> Dim:
    """A dimension to cut, without channels if the place is computed from the batch or the resolution.

    That cannot be written as a number.
    """
    if isinstance(dim, int) or all(map(op.is_static, op.node.all_input_nodes[1:])):
        return dim
    op.freeze(dim, "cut at a place that is computed from the batch or the resolution")
    return len(dim)


@rule("split", "chunk", "tensor_split", "split_with_sizes")
def split(op: Op, tensor: Labels, *arguments: Any, dim: int = 0, **options: Any) -> tuple[Labels, ...]:
    dim = (arguments[1] if len(arguments) > 1 else dim) % len(tensor.dims)
    sizes = [part.shape[dim] for part in op.value]
    bounds = np.cumsum([0, *sizes])
    ids = _unmoved(op, tensor.dims[dim])
    return tuple(
        tensor.replace(dim, op.part(ids, slice(start, start + size)))
        for start, size in zip(bounds[:-1], sizes, strict=True)
    )


@split.rewrite
def _(op: Rewrite, tensor: Any, *arguments: Any, dim: Any = 0, **options: Any) -> Call | None:
    x = op.labels(tensor)
    dim = op.number(arguments[1] if len(arguments) > 1 else dim) % len(x.dims)
    if not op.changed(x.dims[dim]):
        return None
    sizes = [op.size(part.dims[dim]) for part in op.labels_of[op.node.name]]
    return Call((tensor, sizes, dim), target="split" if op.node.op == "call_method" else torch.split)


@rule("unbind")
def unbind(op: Op, input: Labels, dim: int = 0) -> tuple[Labels, ...]:
    dim %= len(input.dims)
    op.freeze(input.dims[dim], "unbound")
    one = input.take(d for d in range(len(input.dims)) if d != dim)
    return (one,) * input.shape[dim]


@rule("narrow")
def narrow(op: Op, input: Labels, dim: int, start: int, length: int) -> Labels:
    start %= input.shape[dim]
    return input.replace(dim % len(input.dims), op.part(_unmoved(op, input.dims[dim]), slice(start, start + length)))


@narrow.rewrite
def _(op: Rewrite, input: Any, dim: Any, start: Any, length: Any) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    kept, first = op.kept(ids), op.number(start) % len(ids)
    return Call((input, dim, int(kept[:first].sum()), int(kept[first : first + op.number(length)].sum())))


@rule("select")
def select(op: Op, input: Labels, dim: int, index: int) -> Labels:
    dim %= len(input.dims)
    ids = input.dims[dim]
    if not isinstance(ids, int):
        _unmoved(op, ids)
        op.freeze(ids[[index]], "selected by number")
    return input.take(d for d in range(len(input.dims)) if d != dim)


@select.rewrite
def _(op: Rewrite, input: Any, dim: Any, index: Any) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    return Call((input, dim, int(op.kept(ids)[: op.number(index) % len(ids)].sum())))

"""Indexing, reading and writing."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.rules.known_index import known_index, places, renumbered
from fxprune.rules.op import BY_SIZE, Op, UnsupportedCall, axis
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["getitem"]


def _entries(index: Any, rank: int) -> list[Any]:
    """The entries of an index with its ellipsis written out: one for each dimension, and one for each None.

    A list of numbers is one entry, as a tensor of them would be.
    """
    entries = list(index) if isinstance(index, tuple) or _is_like_tuple(index) else [index]
    consumed = sum(1 for e in entries if e is not None and e is not Ellipsis)
    if not any(e is Ellipsis for e in entries):
        entries.append(Ellipsis)
    at = next(k for k, e in enumerate(entries) if e is Ellipsis)
    return entries[:at] + [slice(None)] * (rank - consumed) + entries[at + 1 :]


def _is_like_tuple(index: object) -> bool:
    return isinstance(index, list) and not all(isinstance(e, (int, list)) for e in index)


def _is_whole(entry: object) -> bool:
    return isinstance(entry, slice) and entry == slice(None)


def _index_tensor(op: Op, x: Labels, index: Any) -> Labels:
    entries = _entries(index, len(x.dims))
    if _has_tensors(entries):
        return _index_by_tensors(op, x, entries)
    dims: list[Dim] = []
    zero: list[bool] = []
    d = 0
    for entry, given in zip(entries, _entries(op.node.args[1], len(x.dims)), strict=True):
        if entry is None:
            dims.append(1)
            zero.append(False)
            continue
        dim = x.dims[d]
        if isinstance(entry, slice):
            part, moves = _cut(op, x, d, entry, given)
            dims.append(part)
            zero.append(x.zero[d] and not moves)
        elif not isinstance(dim, int):
            if not op.is_static(given) or op.varies(x, d):
                op.freeze(dim, BY_SIZE)
            op.freeze(dim[[entry]], "selected by number")
        d += 1
    return Labels(tuple(dims), tuple(zero))


def _has_tensors(entries: list[Any]) -> bool:
    """Whether an index has tensors, or what torch turns into them."""
    return any(isinstance(e, (Labels, list, tuple, bool)) for e in entries)


def _cut(op: Op, x: Labels, d: int, entry: slice, given: Argument) -> tuple[Dim, bool]:
    """What a slice leaves of a dimension, and whether its place changes with the input.

    Bounds that are computed from the batch or the resolution cannot be rewritten as numbers: they freeze the dimension.
    So do positions among the channels.

    Args:
        op: the op that cuts.
        x: what it cuts.
        d: in which dimension.
        entry: the slice for the example inputs.
        given: the slice in the graph, with nodes for bounds that are computed.
    """
    dim = x.dims[d]
    bounds = (given.start, given.stop, given.step) if isinstance(given, slice) else (given,)
    if any(isinstance(bound, Labels) for bound in (entry.start, entry.stop, entry.step)):
        raise UnsupportedCall("a slice whose bounds are tensors")
    if isinstance(dim, int) or _is_whole(entry):
        return op.part(dim, entry), False
    if not all(map(op.is_static, bounds)) or op.varies(x, d):
        op.freeze(dim, BY_SIZE)
        return len(dim[entry]), True
    _unite_steps(op, dim, entry)
    return op.part(dim, entry), False


def _unite_steps(op: Op, dim: Dim, entry: slice) -> None:
    """A slice with a step: what is skipped goes together with what is taken, so the step stays right."""
    if isinstance(dim, int) or entry.step in (None, 1):
        return
    start, stop, step = entry.indices(len(dim))
    if start >= step or stop != len(dim):
        op.freeze(dim, "sliced with a step")
        return
    firsts = dim[np.arange(len(dim)) // step * step]
    op.ids.unite(firsts, dim)


def _index_by_tensors(op: Op, x: Labels, entries: list[Any]) -> Labels:
    """A dimension that is indexed stays whole unless the index is known; the others are where numpy puts them."""
    d = 0
    plain: list[tuple[Dim, bool]] = []
    first = None
    indexed = [k for k, e in enumerate(entries) if not isinstance(e, slice) and e is not None]
    taken: list[tuple[Dim, bool]] = []
    for k, entry in enumerate(entries):
        if entry is None:
            plain.append((1, False))
            continue
        if isinstance(entry, Labels) and len(entry.dims) > 1 and _is_mask(op, k):
            return _index_by_mask(op, x, entries, k)
        if _is_whole(entry):
            plain.append((x.dims[d], x.zero[d]))
        else:
            op.freeze(entry, "used as an index")
            if indexed == [k]:
                taken = _taken(op, x, d, _entries(op.node.args[1], len(x.dims))[k])
            if indexed != [k] or not taken:
                op.freeze(x.dims[d], "indexed by a tensor")
            if isinstance(entry, slice):
                plain.append((len(range(*entry.indices(x.shape[d]))), False))
            elif first is None:
                first = len(plain)
        d += 1
    adjacent = indexed[-1] - indexed[0] + 1 == len(indexed)
    at = first if adjacent and first is not None else 0
    width = len(op.shape) - len(plain)
    new = taken or [(n, False) for n in op.shape[at : at + width]]
    merged = plain[:at] + new + plain[at:]
    return Labels(tuple(dim for dim, _ in merged), tuple(z for _, z in merged))


def _index_by_mask(op: Op, x: Labels, entries: list[Any], k: int) -> Labels:
    """A mask of several dimensions takes positions; the dimensions that it does not have keep their channels."""
    mask, rest = entries[k], [*entries[:k], *entries[k + 1 :]]
    end = k + len(mask.dims)
    op.freeze(mask, "used as an index")
    if not all(map(_is_whole, rest)):
        op.freeze(x, "indexed by a mask")
        return Labels.plain(op.shape)
    op.freeze(x.dims[k:end], "indexed by a mask")
    zero = (*x.zero[:k], False, *x.zero[end:])
    return Labels((*x.dims[:k], op.shape[k], *x.dims[end:]), zero)


def _taken(op: Op, x: Labels, d: int, index: Argument) -> list[tuple[Dim, bool]]:
    """What a known index takes of a dimension, and whether that is zero; empty where the index is not known."""
    values = known_index(op, index)
    if values is None or op.varies(x, d):
        return []
    dim = op.part(x.dims[d], places(values, size_of(x.dims[d])))
    return [(dim, x.zero[d] and is_labelled(dim))]


def _is_mask(op: Op, position: int) -> bool:
    index = op.node.args[1]
    entry = index[position] if isinstance(index, (tuple, list)) and position < len(index) else index
    value = entry.meta["value"] if isinstance(entry, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)


@rule(operator.getitem)
def getitem(op: Op, container: object, index: Any) -> Any:
    """A part of a tensor, a tuple or a size."""
    if isinstance(container, Labels):
        return _index_tensor(op, container, index)
    source = op.node.args[0]
    label = op.labels_of.get(source.name) if isinstance(source, fx.Node) else None
    return label[index] if isinstance(label, (tuple, dict)) else label


@getitem.rewrite
def _(op: Rewrite, container: fx.Node, index: Argument) -> Call | None:
    if not isinstance(op.value, torch.Tensor) or not isinstance(op.number(container), torch.Tensor):
        return None
    left = _index_left(op, container, index)
    return None if left is None else Call((container, left))


def _index_left(op: Rewrite, container: fx.Node, index: Argument) -> tuple[Argument, ...] | None:
    """The index of the same entries among those that stay; None where it does not change."""
    x = op.labels(container)
    numbers = _entries(fx.node.map_arg(index, op.number), len(x.dims))
    new: list[Argument] = _entries(index, len(x.dims))
    d, touched = 0, False
    for k, entry in enumerate(numbers):
        if entry is None:
            continue
        dim = x.dims[d]
        d += 1
        if isinstance(dim, int) or not op.changed(dim) or _is_whole(entry):
            continue
        kept = op.kept(dim)
        touched = True
        if isinstance(entry, slice):
            start, stop, step = entry.indices(len(kept))
            new[k] = slice(int(kept[:start].sum()), int(kept[:stop].sum())) if step == 1 else slice(start, None, step)
        elif isinstance(entry, (torch.Tensor, list, tuple)):
            new[k] = renumbered(op, new[k], kept)
        else:
            new[k] = int(kept[: entry % len(kept)].sum())
    return tuple(new) if touched else None


@rule("index_select")
def index_select(op: Op, input: Labels, dim: int, index: Labels) -> Labels:
    dim = axis(input, dim)
    op.freeze(index, "used as an index")
    taken = _taken(op, input, dim, op.node.kwargs.get("index", op.node.args[-1]))
    if not taken:
        op.freeze(input.dims[dim], "selected by an index tensor")
        return input.replace(dim, op.shape[dim], zero=False)
    return input.replace(dim, *taken[0])


@index_select.rewrite
def _(op: Rewrite, input: fx.Node, dim: Argument, index: Argument) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    return Call((input, dim, renumbered(op, index, op.kept(ids))))


@rule(operator.setitem)
def setitem(op: Op, container: Labels, index: Any, value: object) -> None:
    """The value has the channels of the part that it is written into; what cannot be matched is frozen."""
    if isinstance(index, Labels) and _is_mask(op, 0):
        _set_masked(op, container, index, value)
        return
    entries = _entries(index, len(container.dims))
    if _has_tensors(entries):
        op.freeze((container, index, value), "written into by index")
        return
    dims = iter(range(len(container.dims)))
    region: list[Dim] = []
    for entry, given in zip(entries, _entries(op.node.args[1], len(container.dims)), strict=True):
        if entry is None:
            region.append(1)
            continue
        d = next(dims)
        dim = container.dims[d]
        if isinstance(entry, slice):
            region.append(_cut(op, container, d, entry, given)[0])
        elif not isinstance(dim, int):
            op.freeze(dim if op.varies(container, d) else dim[[entry]], "written into by number")
    _unite_with(op, region, value)


def _set_masked(op: Op, container: Labels, mask: Labels, value: object) -> None:
    """The value has the channels of the dimensions that follow those of the mask."""
    rank = len(mask.dims)
    for dim, masked in zip(container.dims, mask.dims, strict=False):
        if isinstance(value, Labels):
            op.freeze(dim, "written into by a mask")
            op.freeze(masked, "used as an index")
        else:
            op.unite(dim, masked)
    _unite_with(op, container.dims[rank:], value)


def _unite_with(op: Op, region: Sequence[Dim], value: object) -> None:
    """A value is broadcast to the dimensions of the region that it is written into."""
    if isinstance(value, Labels):
        for dim, written in zip(reversed(region), reversed(value.dims), strict=False):
            if size_of(written) > 1 and (is_labelled(dim) or is_labelled(written)):
                op.unite(dim, written)


@setitem.rewrite
def _(op: Rewrite, container: fx.Node, index: Argument, value: Argument) -> Call | None:
    left = _index_left(op, container, index)
    return None if left is None else Call((container, left, value))

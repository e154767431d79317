"""Indexing, reading and writing."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.rules.known_index import known_index, places, renumbered
from fxprune.rules.registry import Call, Op, Rewrite, freeze_labels, rule

__all__ = ["getitem"]


def _spelt(index: Any, rank: int) -> list[Any]:
    """An index with its ellipsis spelt out, one entry for each dimension (and for each None)."""
    entries = list(index) if isinstance(index, (tuple, list)) else [index]
    consumed = sum(1 for e in entries if e is not None and e is not Ellipsis)
    if not any(e is Ellipsis for e in entries):
        entries.append(Ellipsis)
    at = next(k for k, e in enumerate(entries) if e is Ellipsis)
    return entries[:at] + [slice(None)] * (rank - consumed) + entries[at + 1 :]


def _is_whole(entry: Any) -> bool:
    return isinstance(entry, slice) and entry == slice(None)


def _index_tensor(op: Op, x: Labels, index: Any) -> Labels:
    entries = _spelt(index, len(x.dims))
    if any(isinstance(e, (Labels, list, tuple, bool)) for e in entries):
        return _index_by_tensors(op, x, entries)
    dims: list[Dim] = []
    zero: list[bool] = []
    d = 0
    for entry, given in zip(entries, _spelt(op.node.args[1], len(x.dims)), strict=True):
        if entry is None:
            dims.append(1)
            zero.append(False)
            continue
        dim = x.dims[d]
        if isinstance(entry, slice):
            part, moves = _cut(op, dim, entry, given)
            dims.append(part)
            zero.append(x.zero[d] and not moves)
        else:
            if not isinstance(dim, int):
                op.freeze(dim[[entry]], "selected by number")
        d += 1
    shape = op.shape
    assert tuple(size_of(dim) for dim in dims) == shape, f"{op.node}: {dims} is not {shape}"
    return Labels(tuple(dims), tuple(zero))


def _cut(op: Op, dim: Dim, entry: slice, given: Any) -> tuple[Dim, bool]:
    """What a slice, as `given` in the graph, leaves of a dimension, and whether that moves with the input.

    Bounds that are computed from these cannot be written as numbers, and what they cut out is as long as they say.
    """
    bounds = (given.start, given.stop, given.step) if isinstance(given, slice) else (given,)
    if not isinstance(dim, int) and not _is_whole(entry) and not all(map(op.is_static, bounds)):
        op.freeze(dim, "cut at a place that is computed from the batch or the resolution")
        return len(dim[entry]), True
    _unite_steps(op, dim, entry)
    return op.part(dim, entry), False


def _unite_steps(op: Op, dim: Dim, entry: slice) -> None:
    """With a step, what is jumped over goes with what is taken: the others are then as far apart as before."""
    if isinstance(dim, int) or entry.step in (None, 1):
        return
    start, stop, step = entry.indices(len(dim))
    if start >= step or stop != len(dim):
        op.freeze(dim, "sliced with a step")
        return
    firsts = dim[np.arange(len(dim)) // step * step]
    op.ids.unite(firsts, dim)


def _index_by_tensors(op: Op, x: Labels, entries: list[Any]) -> Labels:
    """What is indexed stays whole, unless the index is known; the rest keeps its labels where numpy's rules put it."""
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
            freeze_labels(op, x, "indexed by a mask")
            return Labels.plain(op.shape)
        if _is_whole(entry):
            plain.append((x.dims[d], x.zero[d]))
        else:
            if isinstance(entry, Labels):
                op.freeze(entry, "used as an index")
            if indexed == [k]:
                taken = _taken(op, x, d, _spelt(op.node.args[1], len(x.dims))[k])
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


def _taken(op: Op, x: Labels, d: int, index: Any) -> list[tuple[Dim, bool]]:
    """What a known index takes of a dimension, and whether it is zero; nothing where the index is not known."""
    values = known_index(op, index)
    if values is None:
        return []
    dim = op.part(x.dims[d], places(values, size_of(x.dims[d])))
    return [(dim, x.zero[d] and is_labelled(dim))]


def _is_mask(op: Op, position: int) -> bool:
    index = op.node.args[1]
    entry = index[position] if isinstance(index, (tuple, list)) and position < len(index) else index
    value = entry.meta["value"] if isinstance(entry, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)


@rule(operator.getitem)
def getitem(op: Op, container: Any, index: Any) -> Any:
    """A part of a tensor, a tuple or a size."""
    if isinstance(container, Labels):
        return _index_tensor(op, container, index)
    label = op.labels_of.get(op.node.args[0].name)  # type: ignore[union-attr, arg-type]
    return label[index] if isinstance(label, (tuple, dict)) else label


@getitem.rewrite
def _(op: Rewrite, container: Any, index: Any) -> Call | None:
    if not isinstance(op.value, torch.Tensor) or not isinstance(op.number(container), torch.Tensor):
        return None
    left = _index_left(op, container, index)
    return None if left is None else Call((container, left))


def _index_left(op: Rewrite, container: Any, index: Any) -> tuple[Any, ...] | None:
    """The index of the same entries among those that are left; None where it stays."""
    x = op.labels(container)
    values = fx.node.map_arg(index, lambda n: n.meta["value"])
    numbers = _spelt(values, len(x.dims))
    new: list[Any] = list(_spelt(index, len(x.dims)))
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
    dim %= len(input.dims)
    op.freeze(index, "used as an index")
    taken = _taken(op, input, dim, op.node.kwargs.get("index", op.node.args[-1]))
    if not taken:
        op.freeze(input.dims[dim], "selected by an index tensor")
        return input.replace(dim, op.shape[dim], zero=False)
    return input.replace(dim, *taken[0])


@index_select.rewrite
def _(op: Rewrite, input: Any, dim: Any, index: Any) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    return Call((input, dim, renumbered(op, index, op.kept(ids))))


@rule(operator.setitem)
def setitem(op: Op, container: Labels, index: Any, value: Any) -> None:
    """What is written into a part of the channels has the same ones; else both are frozen."""
    if isinstance(index, Labels) and _is_mask(op, 0):
        _set_masked(op, container, index, value)
        return
    entries = _spelt(index, len(container.dims))
    if any(isinstance(e, (Labels, list, tuple, bool)) for e in entries):
        freeze_labels(op, (container, index, value), "written into by index")
        return
    dims = iter(container.dims)
    region: list[Dim] = []
    for entry, given in zip(entries, _spelt(op.node.args[1], len(container.dims)), strict=True):
        dim = 1 if entry is None else next(dims)
        if isinstance(entry, slice):
            region.append(_cut(op, dim, entry, given)[0])
        elif entry is None:
            region.append(1)
        elif not isinstance(dim, int):
            op.freeze(dim[[entry]], "written into by number")
    if isinstance(value, Labels):
        for dim, written in zip(reversed(region), reversed(value.dims), strict=False):
            if size_of(written) > 1 and (is_labelled(dim) or is_labelled(written)):
                op.unite(dim, written)


def _set_masked(op: Op, container: Labels, mask: Labels, value: Any) -> None:
    """What is written has the channels of the dimensions behind the mask."""
    rank = len(mask.dims)
    for dim, masked in zip(container.dims, mask.dims, strict=False):
        if isinstance(value, Labels):
            op.freeze(dim, "written into by a mask")
            op.freeze(masked, "used as an index")
        else:
            op.unite(dim, masked)
    behind = container.dims[rank:]
    if isinstance(value, Labels):
        for dim, written in zip(reversed(behind), reversed(value.dims), strict=False):
            if size_of(written) > 1 and (is_labelled(dim) or is_labelled(written)):
                op.unite(dim, written)


@setitem.rewrite
def _(op: Rewrite, container: Any, index: Any, value: Any) -> Call | None:
    left = _index_left(op, container, index)
    return None if left is None else Call((container, left, value))

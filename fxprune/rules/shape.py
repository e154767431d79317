"""Ops that move, merge, split and select dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.channels import Dim, Labels, Size, is_labelled, size_of
from fxprune.rules.registry import Call, Op, Rewrite, freeze_labels, rule

__all__ = ["reshape_labels", "resized"]


# --- reshape ---------------------------------------------------------------------------------------------------------


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The smallest runs of dimensions, in the old and in the new shape, that hold the same elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        start, other = i, j
        left = right = 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after) and (left != 1 or i == start or after[j] == 1):
            right, j = after[j], j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield range(start, i), range(other, j)


def _refine(before: Sequence[int], after: Sequence[int]) -> tuple[list[int], list[list[int]], list[list[int]]] | None:
    """Factors such that every old and every new dimension is a product of consecutive ones; None if there are none.

    Returns the factors, and for each old and each new dimension the positions of its factors.
    """
    factors: list[int] = []
    old: list[list[int]] = [[] for _ in before]
    new: list[list[int]] = [[] for _ in after]
    i = j = 0
    left = right = 1
    while True:
        while left == 1 and i < len(before):
            left, i = before[i], i + 1
        while right == 1 and j < len(after):
            right, j = after[j], j + 1
        if left == right == 1:
            return factors, old, new
        if left % right and right % left:
            return None
        factor = min(left, right)
        old[i - 1].append(len(factors))
        new[j - 1].append(len(factors))
        factors.append(factor)
        left, right = left // factor, right // factor


def reshape_labels(op: Op, x: Labels, shape: Sequence[int]) -> Labels:
    """The labels of `x` in a new shape of as many elements.

    Where a channel dimension is split, the kept set must stay rectangular: the factor with the most units carries the
    channels, and they are united across the other factors. Where dimensions are merged, ids repeat.
    """
    dims: list[Dim] = list(shape)
    zero = [False] * len(shape)
    for old, new in _blocks(x.shape, shape):
        part = x.take(old)
        if not part.labelled:
            continue
        labels = _reshape_block(op, part, [shape[d] for d in new])
        for d, dim, is_zero in zip(new, labels.dims, labels.zero, strict=True):
            dims[d], zero[d] = dim, is_zero
    return Labels(tuple(dims), tuple(zero))


def _reshape_block(op: Op, x: Labels, shape: Sequence[int]) -> Labels:
    refined = _refine(x.shape, shape)
    if refined is None:
        op.freeze(x, "reshaped so that channels do not stay in line")
        return Labels.plain(shape)
    factors, old, new = refined
    carried: dict[int, tuple[Any, bool]] = {}
    for dim, is_zero, positions in zip(x.dims, x.zero, old, strict=True):
        if isinstance(dim, int) or not positions:
            continue
        axis = max(range(len(positions)), key=lambda k: (factors[positions[k]], k))
        ids = dim.reshape([factors[k] for k in positions])
        carried[positions[axis]] = (op.unite_axis(ids, axis), is_zero)
    dims: list[Dim] = list(shape)
    zero = [False] * len(shape)
    for d, positions in enumerate(new):
        labelled = sorted((k for k in positions if k in carried), key=lambda k: factors[k])
        for k in labelled[:-1]:
            op.freeze(carried[k][0], "merged with another channel dimension")
        if labelled:
            k = labelled[-1]
            ids, zero[d] = carried[k]
            before = math.prod(factors[p] for p in positions if p < k)
            after = math.prod(factors[p] for p in positions if p > k)
            dims[d] = np.tile(np.repeat(ids, after), before)
    return Labels(tuple(dims), tuple(zero))


def _flat(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes given one by one or as one sequence."""
    if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)):
        return tuple(arguments[0])
    return arguments


def _freeze_if_unsizable(op: Op, out: Labels, sizes: Sequence[Any]) -> None:
    """A labelled dimension whose size is computed from the batch or the resolution can only be written as -1."""
    inferred = sum(1 for size in sizes if isinstance(size, int) and size == -1)
    for dim, size in zip(out.dims, sizes, strict=False):
        if is_labelled(dim) and isinstance(size, fx.Node) and not op.is_static(size):
            inferred += 1
            if inferred > 1:
                op.freeze(dim, "its size is computed from the batch or the resolution")


def resized(op: Rewrite, sizes: Sequence[Any]) -> list[Any] | None:
    """The size arguments for the channels that are left; None where they stay."""
    out = op.out
    if not any(op.changed(dim) for dim in out.dims):
        return None
    new = list(sizes)
    static: list[int] = []
    for d, dim in enumerate(out.dims):
        if op.changed(dim) and op.number(new[d]) != -1:
            new[d] = op.size(dim)
            static.append(d)
    for d in static:
        if isinstance(sizes[d], fx.Node) and not op.is_static(sizes[d]):
            new[d] = -1
    return new


def _entries(op: Rewrite, arguments: tuple[Any, ...]) -> list[Any]:
    """Size arguments one by one; a node that holds a whole size is taken apart."""
    if len(arguments) == 1 and isinstance(arguments[0], fx.Node) and not isinstance(op.number(arguments[0]), int):
        return op.take_apart(arguments[0])
    return list(_flat(arguments))


@rule("reshape", "view")
def reshape(op: Op, input: Labels, *shape: Any, **options: Any) -> Labels:
    if shape and isinstance(shape[0], torch.dtype):
        freeze_labels(op, input, "viewed as another type")
        return Labels.plain(op.shape)
    out = reshape_labels(op, input, op.shape)
    arguments = _flat(tuple(op.node.args[1:]))
    if len(arguments) == len(op.shape):
        _freeze_if_unsizable(op, out, arguments)
    return out


@reshape.rewrite
def _(op: Rewrite, input: Any, *shape: Any, **options: Any) -> Call | None:
    if options:
        shape = (options.get("shape", options.get("size")),)
    sizes = resized(op, _entries(op, shape))
    return None if sizes is None else Call((input, tuple(sizes)))


@rule("reshape_as", "view_as")
def reshape_as(op: Op, input: Labels, other: Labels) -> Labels:
    out = reshape_labels(op, input, op.shape)
    dims = tuple(op.unite(a, b) if size_of(a) > 1 else 1 for a, b in zip(out.dims, other.dims, strict=True))
    return Labels(dims, out.zero)


@rule("flatten", nn.Flatten)
def flatten(op: Op, input: Labels, start_dim: int = 0, end_dim: int = -1) -> Labels:
    return reshape_labels(op, input, op.shape)


@rule("unflatten")
def unflatten(op: Op, input: Labels, dim: int, sizes: Any) -> Labels:
    return reshape_labels(op, input, op.shape)


@unflatten.rewrite
def _(op: Rewrite, input: Any, dim: Any, sizes: Any) -> Call | None:
    first = op.number(dim) % len(op.labels(input).dims)
    entries = _entries(op, (sizes,))
    lead: list[Any] = [-1] * first
    trail: list[Any] = [-1] * (len(op.out.dims) - first - len(entries))
    new = resized(op, [*lead, *entries, *trail])
    return None if new is None else Call((input, dim, tuple(new[first : first + len(entries)])))


@rule(nn.Unflatten)
def unflatten_module(op: Op, input: Labels) -> Labels:
    return reshape_labels(op, input, op.shape)


@unflatten_module.rewrite
def _(op: Rewrite, input: Any) -> Call | None:
    module: Any = op.module
    first = int(module.dim) % len(op.labels(input).dims)
    count = len(module.unflattened_size)
    module.unflattened_size = tuple(op.size(dim) for dim in op.out.dims[first : first + count])
    return None


# --- order -----------------------------------------------------------------------------------------------------------


@rule("permute")
def permute(op: Op, input: Labels, *dims: Any, **options: Any) -> Labels:
    order = _flat(dims) if dims else options["dims"]
    return input.take(d % len(input.dims) for d in order)


@rule("transpose", "swapaxes", "swapdims", "t", "mT", "adjoint")
def transpose(op: Op, input: Labels, dim0: int = -2, dim1: int = -1) -> Labels:
    order = list(range(len(input.dims)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return input.take(order)


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
    given = (arguments[1] if len(arguments) > 1 else None) if by_roll else _flat(arguments)
    dims = options.get("dims", given)
    for d in range(len(input.dims)) if dims is None else (dims if isinstance(dims, (tuple, list)) else (dims,)):
        op.freeze(input.dims[d], "rolled or flipped along")
    return input


# --- repetition ------------------------------------------------------------------------------------------------------


@rule("expand", "broadcast_to")
def expand(op: Op, input: Labels, *sizes: Any, **options: Any) -> Labels:
    lead = len(op.shape) - len(input.dims)
    dims: list[Dim] = list(op.shape)
    zero = [False] * len(dims)
    for d, dim in enumerate(input.dims):
        if size_of(dim) == dims[lead + d]:
            dims[lead + d], zero[lead + d] = dim, input.zero[d]
    arguments = _flat(tuple(op.node.args[1:])) or op.node.kwargs.get("size")
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
    entries = _entries(op, sizes or (options["size"],))
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


@rule("repeat", "tile")
def repeat(op: Op, input: Labels, *sizes: Any, **options: Any) -> Labels:
    lead = len(op.shape) - len(input.dims)
    dims: list[Dim] = list(op.shape)
    zero = [False] * len(dims)
    for d, dim in enumerate(input.dims):
        if not isinstance(dim, int):
            dims[lead + d], zero[lead + d] = np.tile(dim, dims[lead + d] // len(dim)), input.zero[d]
    return Labels(tuple(dims), tuple(zero))


@rule("repeat_interleave")
def repeat_interleave(op: Op, input: Labels, repeats: Any, dim: int | None = None, **options: Any) -> Labels:
    if not isinstance(repeats, int) or dim is None:
        freeze_labels(op, (input, repeats), "repeated unevenly")
        return Labels.plain(op.shape)
    ids = input.dims[dim]
    return input.replace(dim % len(input.dims), op.shape[dim] if isinstance(ids, int) else np.repeat(ids, repeats))


# --- joining and cutting ---------------------------------------------------------------------------------------------


@rule("cat", "concat", "concatenate")
def cat(op: Op, tensors: Any, dim: int = 0, **options: Any) -> Labels:
    dim = options.get("axis", dim)
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


@rule("split", "chunk", "tensor_split", "split_with_sizes")
def split(op: Op, tensor: Labels, *arguments: Any, dim: int = 0, **options: Any) -> tuple[Labels, ...]:
    dim = (arguments[1] if len(arguments) > 1 else dim) % len(tensor.dims)
    sizes = [part.shape[dim] for part in op.value]
    bounds = np.cumsum([0, *sizes])
    ids = tensor.dims[dim]
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
    return input.replace(dim % len(input.dims), op.part(input.dims[dim], slice(start, start + length)))


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
        op.freeze(ids[[index]], "selected by number")
    return input.take(d for d in range(len(input.dims)) if d != dim)


@select.rewrite
def _(op: Rewrite, input: Any, dim: Any, index: Any) -> Call | None:
    ids = op.labels(input).dims[op.number(dim)]
    if isinstance(ids, int) or not op.changed(ids):
        return None
    return Call((input, dim, int(op.kept(ids)[: op.number(index) % len(ids)].sum())))


@rule("index_select")
def index_select(op: Op, input: Labels, dim: int, index: Labels) -> Labels:
    op.freeze(input.dims[dim], "selected by an index tensor")
    op.freeze(index, "used as an index")
    return input.replace(dim % len(input.dims), op.shape[dim], zero=False)


# --- indexing --------------------------------------------------------------------------------------------------------


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
    for entry in entries:
        if entry is None:
            dims.append(1)
            zero.append(False)
            continue
        dim = x.dims[d]
        if isinstance(entry, slice):
            if entry.step not in (None, 1):
                op.freeze(dim, "sliced with a step")
            dims.append(op.part(dim, entry))
            zero.append(x.zero[d])
        else:
            if not isinstance(dim, int):
                op.freeze(dim[[entry]], "selected by number")
        d += 1
    shape = op.shape
    assert tuple(size_of(dim) for dim in dims) == shape, f"{op.node}: {dims} is not {shape}"
    return Labels(tuple(dims), tuple(zero))


def _index_by_tensors(op: Op, x: Labels, entries: list[Any]) -> Labels:
    """Indexed dimensions stay whole; the others keep their labels where numpy's rules put them."""
    d = 0
    plain: list[tuple[Dim, bool]] = []
    first = None
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
            op.freeze(x.dims[d], "indexed by a tensor")
            if isinstance(entry, Labels):
                op.freeze(entry, "used as an index")
            if isinstance(entry, slice):
                plain.append((len(range(*entry.indices(x.shape[d]))), False))
            elif first is None:
                first = len(plain)
        d += 1
    indexed = [k for k, e in enumerate(entries) if not isinstance(e, slice) and e is not None]
    adjacent = indexed[-1] - indexed[0] + 1 == len(indexed)
    at = first if adjacent and first is not None else 0
    width = len(op.shape) - len(plain)
    new = [(n, False) for n in op.shape[at : at + width]]
    merged = plain[:at] + new + plain[at:]
    return Labels(tuple(dim for dim, _ in merged), tuple(z for _, z in merged))


def _is_mask(op: Op, position: int) -> bool:
    index = op.node.args[1]
    entry = index[position] if isinstance(index, (tuple, list)) and position < len(index) else index
    value = entry.meta["value"] if isinstance(entry, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)


@rule(operator.getitem)
def getitem(op: Op, container: Any, index: Any) -> Any:
    if isinstance(container, Labels):
        return _index_tensor(op, container, index)
    label = op.labels_of.get(op.node.args[0].name)  # type: ignore[union-attr, arg-type]
    return label[index] if isinstance(label, (tuple, dict)) else label


@getitem.rewrite
def _(op: Rewrite, container: Any, index: Any) -> Call | None:
    if not isinstance(op.value, torch.Tensor) or not isinstance(op.number(container), torch.Tensor):
        return None
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
            start, stop, _ = entry.indices(len(kept))
            new[k] = slice(int(kept[:start].sum()), int(kept[:stop].sum()))
        else:
            new[k] = int(kept[: entry % len(kept)].sum())
    return Call((container, tuple(new))) if touched else None


@rule(operator.setitem)
def setitem(op: Op, container: Labels, index: Any, value: Any) -> None:
    """Where channels are left whole, what is written has the same; else both are frozen."""
    entries = _spelt(index, len(container.dims))
    dims = iter(container.dims)
    cuts = [dim for e in entries if e is not None and is_labelled(dim := next(dims)) and not _is_whole(e)]
    if cuts or any(isinstance(e, (Labels, list, tuple, bool)) for e in entries):
        freeze_labels(op, (container, index, value), "written into by index")
    elif isinstance(value, Labels):
        region = [dim for dim, e in zip(container.dims, (e for e in entries if e is not None), strict=True)
                  if isinstance(e, slice)]  # fmt: skip
        for dim, written in zip(reversed(region), reversed(value.dims), strict=False):
            if size_of(written) > 1 and (is_labelled(dim) or is_labelled(written)):
                op.unite(dim, written)


@rule(
    "gather",
    "scatter",
    "scatter_add",
    "take_along_dim",
    "index_add",
    "index_copy",
    "index_fill",
    "masked_select",
    "topk",
    "sort",
)
def gather(op: Op, *arguments: Any, **options: Any) -> Any:
    freeze_labels(op, (arguments, options), "gathered or sorted by index")
    return map_values(op.value)


def map_values(value: Any) -> Any:
    """Labels without channels for every tensor of a value; sizes and numbers are unknown ones."""
    if isinstance(value, torch.Tensor):
        return Labels.plain(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(map_values(item) for item in value)
    if isinstance(value, dict):
        return {key: map_values(item) for key, item in value.items()}
    return Size(None, False)


# --- sizes -----------------------------------------------------------------------------------------------------------


def _size_label(dim: Dim) -> Size:
    return Size(None, False) if isinstance(dim, int) else Size(dim, True)


@rule(getattr)
def attribute(op: Op, container: Any, name: str) -> Any:
    if not isinstance(container, Labels):
        label = op.labels_of.get(op.node.args[0].name)  # type: ignore[union-attr, arg-type]
        return label.get(name) if isinstance(label, dict) else map_values(op.value)
    if name == "shape":
        return tuple(_size_label(dim) for dim in container.dims)
    if name in ("T", "mT"):
        return container.take([*range(len(container.dims) - 2), -1, -2])
    if name in ("data", "real"):
        return container
    if isinstance(op.value, torch.Tensor):
        op.freeze(container, f"read as .{name}")
    return map_values(op.value)


@rule("size")
def size(op: Op, input: Labels, dim: int | None = None) -> Any:
    labels = tuple(_size_label(d) for d in input.dims)
    return labels if dim is None else labels[dim]


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
def new_like(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    """Of the input only type and device matter."""
    freeze_labels(op, (arguments, options), "made into a new tensor")
    return Labels.plain(op.shape)


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "rand",
    "randn",
    "arange",
    "linspace",
    "eye",
    "tensor",
    "meshgrid",
    "as_tensor",
    "scalar_tensor",
    "Size",
    torch.Size,
)
def factory(op: Op, *arguments: Any, **options: Any) -> Any:
    """New tensors carry no channels, whatever they were sized after."""
    freeze_labels(op, (arguments, options), "made into a new tensor")
    return map_values(op.value)

"""Ops that split and merge dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, Labels, size_of
from fxprune.rules.op import Op, UnsupportedCall
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["flat", "reshape_labels", "resized", "size_entries"]


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
            if (left < right and i == len(before)) or (left > right and j == len(after)):
                raise UnsupportedCall("a reshape of a tensor without elements")
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield range(start, i), range(other, j)


def _refine(before: Sequence[int], after: Sequence[int]) -> tuple[list[int], list[list[int]], list[list[int]]] | None:
    """Factors such that every old and every new dimension is a product of consecutive factors.

    Returns:
        The factors, and for each old and each new dimension the positions of its factors; None if there are no such
        factors.
    """
    if 0 in (*before, *after):
        return None
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

    Where a channel dimension is split, the kept channels must stay a rectangle. So the factor with the most units
    carries the channels, and they are united across the other factors. Where dimensions are merged, ids repeat.
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
    carried: dict[int, tuple[Ids, bool]] = {}
    for d, (dim, is_zero, positions) in enumerate(zip(x.dims, x.zero, old, strict=True)):
        if isinstance(dim, int) or not positions:
            continue
        ids = dim.reshape([factors[k] for k in positions])
        axis = _carrying_axis(op, ids, tuple(factors), d)
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


def _carrying_axis(op: Op, ids: Ids, factors: tuple[int, ...], d: int) -> int:
    """The axis with the most units among those that are not to be avoided."""
    units = [_units(ids, k) for k in range(ids.ndim)]
    splits, place = op.state.splits, (op.node.name, factors, d)
    axes = [k for k in range(ids.ndim) if units[k] > 1 and (*place, k) not in splits.avoided] or range(ids.ndim)
    axis = max(axes, key=lambda k: (units[k], k))
    if sum(n > 1 for n in units) > 1:
        key = (*place, axis)
        splits.chosen[key] = ids
    return axis


def _units(ids: Ids, axis: int) -> int:
    """The number of different channels along an axis."""
    return len(np.unique(np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]))


def flat(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes given one by one or as one sequence."""
    if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)):
        return tuple(arguments[0])
    return tuple(arguments)


def resized(op: Rewrite, sizes: Sequence[Argument]) -> list[Argument] | None:
    """The size arguments for the channels that are left; None where they do not change."""
    out = op.out
    if not any(op.changed(dim) for dim in out.dims):
        return None
    new = list(sizes)
    for d, dim in enumerate(out.dims):
        if not op.changed(dim) or _is_inferred(sizes[d]):
            continue
        if op.is_static(sizes[d]):
            new[d] = op.size(dim)
        elif not any(_is_inferred(size) for size in new):
            new[d] = -1
        else:
            # Computed from the batch or the resolution: the size is the same multiple of the number of channels.
            new[d] = op.insert(operator.floordiv, (op.insert(operator.mul, (sizes[d], op.size(dim))), size_of(dim)))
    return new


def _is_inferred(size: Argument) -> bool:
    return isinstance(size, int) and size == -1


def size_entries(op: Rewrite, arguments: Sequence[Argument]) -> list[Argument]:
    """Size arguments one by one; a node that gives a whole size is taken apart."""
    if len(arguments) == 1 and isinstance(arguments[0], fx.Node) and not isinstance(op.number(arguments[0]), int):
        return list(op.entries(arguments[0]))
    return list(flat(arguments))


@rule("reshape", "view")
def reshape(op: Op, input: Labels, *shape: object, **options: object) -> Labels:
    if shape and isinstance(shape[0], torch.dtype):
        op.freeze(input, "viewed as another type")
        return Labels.plain(op.shape)
    return reshape_labels(op, input, op.shape)


@reshape.rewrite
def _(op: Rewrite, input: fx.Node, *shape: Argument, **options: Argument) -> Call | None:
    if options:
        shape = (options.get("shape", options.get("size")),)
    sizes = resized(op, size_entries(op, shape))
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
def unflatten(op: Op, input: Labels, dim: int, sizes: object) -> Labels:
    return reshape_labels(op, input, op.shape)


@unflatten.rewrite
def _(op: Rewrite, input: fx.Node, dim: Argument, sizes: Argument) -> Call | None:
    first = op.number(dim) % len(op.labels(input).dims)
    entries = size_entries(op, (sizes,))
    lead: list[Argument] = [-1] * first
    trail: list[Argument] = [-1] * (len(op.out.dims) - first - len(entries))
    new = resized(op, [*lead, *entries, *trail])
    return None if new is None else Call((input, dim, tuple(new[first : first + len(entries)])))


@rule(nn.Unflatten)
def unflatten_module(op: Op, input: Labels) -> Labels:
    return reshape_labels(op, input, op.shape)


@unflatten_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
    module: Any = op.module
    first = int(module.dim) % len(op.labels(input).dims)
    count = len(module.unflattened_size)
    module.unflattened_size = tuple(op.size(dim) for dim in op.out.dims[first : first + count])
    return None


def _shuffled(op: Op, x: Labels, groups: int) -> Labels:
    """The channels as (groups, channels of a group), transposed."""
    batch, channels, *space = x.shape
    apart = reshape_labels(op, x, (batch, groups, channels // groups, *space))
    return reshape_labels(op, apart.take((0, 2, 1, *range(3, len(apart.dims)))), x.shape)


def _groups_left(op: Rewrite, groups: int) -> int:
    """How many groups of a channel shuffle stay."""
    width = size_of(op.out.dims[1]) // groups
    kept = op.alive[np.asarray(op.out.dims[1]).reshape(width, groups)]
    return int(kept.any(axis=0).sum())


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(op: Op, input: Labels, groups: int) -> Labels:
    return _shuffled(op, input, groups)


@channel_shuffle.rewrite
def _(op: Rewrite, input: fx.Node, groups: Argument) -> Call | None:
    return Call((input, _groups_left(op, op.number(groups)))) if op.changed(op.out.dims[1]) else None


@rule(nn.ChannelShuffle)
def channel_shuffle_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _shuffled(op, input, module.groups)


@channel_shuffle_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
    module: Any = op.module
    original: Any = op.original
    if op.changed(op.out.dims[1]):
        module.groups = _groups_left(op, original.groups)
    return None

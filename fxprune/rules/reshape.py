"""Ops that split and merge dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, Labels, size_of
from fxprune.rules.matching import blocks, match_is_fixed, refine
from fxprune.rules.op import BY_SIZE, Op
from fxprune.rules.other_sizes import Sizes
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["flat", "reshape_labels", "resized", "size_entries"]


def reshape_labels(op: Op, x: Labels, shape: Sequence[int], others: Sequence[tuple[Sequence[int], ...]] = ()) -> Labels:
    """The labels of `x` in a new shape of as many elements.

    Where a channel dimension is split, the kept channels must stay a rectangle. So the factor with the most units
    carries the channels, and they are united across the other factors. Where dimensions are merged, ids repeat.

    Args:
        op: the node.
        x: what is reshaped.
        shape: the new shape.
        others: the old and the new shape for inputs of other sizes, if the match of dimensions depends on sizes.
            Channels that do not stay in line at all of them are frozen.
    """
    before, after = _at_all_sizes(x.shape, shape, others)
    dims: list[Dim] = list(shape)
    zero = [False] * len(shape)
    for old, new in blocks(before, after):
        part = x.take(old)
        if not part.labelled:
            continue
        labels = _reshape_block(op, part, [before[d] for d in old], [after[d] for d in new])
        for d, dim, is_zero in zip(new, labels.dims, labels.zero, strict=True):
            dims[d], zero[d] = dim, is_zero
    return Labels(tuple(dims), tuple(zero))


def _reshape_block(op: Op, x: Labels, before: Sequence[Sizes], after: Sequence[Sizes]) -> Labels:
    shape = [sizes[0] for sizes in after]
    refined = refine(before, after)
    if refined is None:
        op.freeze(x, "reshaped so that channels do not stay in line")
        return Labels.plain(shape)
    factors, old, new = refined
    carried: dict[int, tuple[Ids, bool]] = {}
    for d, (dim, is_zero, positions) in enumerate(zip(x.dims, x.zero, old, strict=True)):
        if isinstance(dim, int) or not positions:
            continue
        ids = dim.reshape([factors[k][0] for k in positions])
        axis = _carrying_axis(op, ids, tuple(sizes[0] for sizes in factors), d)
        if _same_split(op, dim, ids, axis, before[d], [factors[k] for k in positions]):
            carried[positions[axis]] = (op.unite_axis(ids, axis), is_zero)
        else:
            op.freeze(dim, "reshaped so that channels do not stay in line at every size")
    dims: list[Dim] = list(shape)
    zero = [False] * len(shape)
    for d, positions in enumerate(new):
        labelled = sorted((k for k in positions if k in carried), key=lambda k: factors[k])
        for k in labelled[:-1]:
            op.freeze(carried[k][0], "merged with another channel dimension")
        if labelled:
            k = labelled[-1]
            ids, zero[d] = carried[k]
            left = math.prod(factors[p][0] for p in positions if p < k)
            right = math.prod(factors[p][0] for p in positions if p > k)
            merged = dims[d] = np.tile(np.repeat(ids, right), left)
            op.state.merged[id(merged)] = merged, [factors[p] for p in positions], positions.index(k)
    return Labels(tuple(dims), tuple(zero))


def _same_split(op: Op, dim: Ids, ids: Ids, axis: int, sizes: Sizes, factors: Sequence[Sizes]) -> bool:
    """Whether the channels of a dimension that is split are split alike at every size.

    Args:
        op: the node.
        dim: the channels of the dimension.
        ids: the same in the shape of the factors.
        axis: that of the factor that carries the channels.
        sizes: those of the dimension.
        factors: those of the dimension.
    """
    fixed = [len(set(factor)) == 1 for factor in factors]
    if len(factors) == 1 or all(fixed):
        return True
    if len(set(sizes)) == 1 or not fixed[axis]:
        return False
    # The dimension repeats its channels as often as a size says. The split is right if it undoes the repetition.
    _, merged, carrying = op.state.merged.get(id(dim), (dim, (), 0))
    if merged and len(merged[0]) == len(sizes):
        return merged[carrying] == factors[axis] and _product(merged[:carrying]) == _product(factors[:axis])
    # Of a single repetition the ids do not tell whether it is inside or outside of the channels.
    others = [k for k in range(len(factors)) if k != axis]
    return all(_units(ids, k) == 1 and (fixed[k] or factors[k][0] > 1) for k in others)


def _product(sizes: Sequence[Sizes]) -> Sizes:
    return tuple(map(math.prod, zip(*sizes, strict=True)))


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


def _reshaped(op: Op, x: Labels) -> Labels:
    """The labels of a tensor whose new sizes are given one by one, so that what matches may depend on the sizes."""
    sizes = op.state.sizes
    source = next((node for node in op.node.all_input_nodes if op.labels_of[node.name] is x), None)
    if source is None or not x.labelled or match_is_fixed(op.node, source, x.labelled, sizes.fixed):
        return reshape_labels(op, x, op.shape)
    pairs = sizes.shapes(source, op.node)
    mixing = sizes.shapes(source, op.node, mixing=True)
    if mixing and _matches(x, op.shape, pairs) != _matches(x, op.shape, [*pairs, *mixing]):
        op.state.held[op.node.name] = tuple(
            (source.name, d)
            for d, is_fixed in enumerate(sizes.fixed[source])
            if not is_fixed and any(old[d] != x.shape[d] for old, _ in mixing)
        )
    return reshape_labels(op, x, op.shape, pairs)


def _matches(x: Labels, shape: Sequence[int], others: Sequence[tuple[Sequence[int], ...]]) -> list[Any]:
    """The dimensions with channels and what they match, with the factors, where there are any."""
    before, after = _at_all_sizes(x.shape, shape, others)
    matching = [(old, new) for old, new in blocks(before, after) if x.take(old).labelled]
    return [(old, new, refine([before[d] for d in old], [after[d] for d in new]) is None) for old, new in matching]


def _at_all_sizes(
    before: Sequence[int], after: Sequence[int], others: Sequence[tuple[Sequence[int], ...]]
) -> tuple[list[Sizes], list[Sizes]]:
    """For each dimension its size at the example's and at the other sizes; these are pairs of shapes."""
    old = list(zip(before, *(pair[0] for pair in others), strict=True))
    new = list(zip(after, *(pair[1] for pair in others), strict=True))
    return old, new


@rule("reshape", "view")
def reshape(op: Op, input: Labels, *shape: object, **options: object) -> Labels:
    if shape and isinstance(shape[0], torch.dtype):
        op.freeze(input, "viewed as another type")
        return Labels.plain(op.shape)
    return _reshaped(op, input)


@reshape.rewrite
def _(op: Rewrite, input: fx.Node, *shape: Argument, **options: Argument) -> Call | None:
    if options:
        shape = (options.get("shape", options.get("size")),)
    sizes = resized(op, size_entries(op, shape))
    return None if sizes is None else Call((input, tuple(sizes)))


@rule("reshape_as", "view_as")
def reshape_as(op: Op, input: Labels, other: Labels) -> Labels:
    out = _reshaped(op, input)
    dims = tuple(op.unite(a, b) if size_of(a) > 1 else 1 for a, b in zip(out.dims, other.dims, strict=True))
    return Labels(dims, out.zero)


@rule("flatten", nn.Flatten)
def flatten(op: Op, input: Labels, start_dim: int = 0, end_dim: int = -1) -> Labels:
    return reshape_labels(op, input, op.shape)


@rule("unflatten")
def unflatten(op: Op, input: Labels, dim: int, sizes: object) -> Labels:
    return _reshaped(op, input)


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
    return _reshaped(op, input)


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
    if not op.is_static(op.argument(1, "groups")):
        op.freeze(input.dims[1], BY_SIZE)
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

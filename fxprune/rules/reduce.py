"""Reductions and softmax.

A sum over channels does not change when channels go that are zero. A mean still divides by the original width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Labels, LabelTree, is_labelled, size_of
from fxprune.rules.elementwise import broadcast, elementwise, take_from_tables
from fxprune.rules.op import Op, axis
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite
from fxprune.rules.stand_in import append_removed, sum_over_appended

__all__: list[str] = []


def _reduced(x: Labels, dim: Any) -> tuple[int, ...]:
    """The dimensions that are reduced."""
    if dim is None or dim == () or dim == []:
        return tuple(range(len(x.dims)))
    return tuple(axis(x, d) for d in (dim if isinstance(dim, (tuple, list)) else (dim,)))


def _reduce(op: Op, x: Labels, dim: Any, keepdim: bool, additive: bool, appends: bool = False) -> Labels:
    """A reduction.

    Args:
        op: the reduction.
        x: its input.
        dim: one dimension, several, or None for all.
        keepdim: whether reduced dimensions stay, with one entry.
        additive: whether entries that are zero do not count.
        appends: whether the rewrite appends the entries of removed channels.
    """
    reduced = _reduced(x, dim)
    labelled = [d for d in reduced if is_labelled(x.dims[d])]
    # Entries are appended along one dimension, of a weight that of its channels, and the others stay whole.
    widest = max(labelled, key=lambda d: size_of(x.dims[d]), default=None)
    appends = appends and not any(additive and x.zero[d] for d in labelled if d != widest)
    for d in reduced:
        if additive and x.zero[d]:
            op.sums_over(x, d)
        elif appends and d == widest and sum_over_appended(op, op.node.all_input_nodes[0], d):
            op.mark_last_resort(x.dims[d], f"reduced by {op.name}; zeros stand in for what is removed")
        else:
            op.sums_over(x, d)
            op.freeze(x.dims[d], f"reduced by {op.name}{' where it is not zero' if additive else ''}")
    left = [d for d in range(len(x.dims)) if d not in reduced]
    if not keepdim:
        return x.take(left)
    dims = tuple(1 if d in reduced else dim for d, dim in enumerate(x.dims))
    return Labels(dims, tuple(zero and d not in reduced for d, zero in enumerate(x.zero)))


def _lost(op: Rewrite, input: fx.Node, dim: Argument) -> list[int]:
    """The dimensions that are reduced and lose channels."""
    x = op.labels(input)
    return [d for d in _reduced(x, op.number(dim)) if op.changed(x.dims[d])]


def _with_removed(
    op: Rewrite, input: fx.Node, dim: Argument, arguments: tuple[Argument, ...], options: dict[str, Argument]
) -> Call | None:
    """The same reduction of the input with the entries of the removed channels appended."""
    lost = _lost(op, input, dim)
    if not lost:
        return None
    whole = append_removed(op, input, lost[0])
    given = () if dim is None else (dim, *arguments)
    return None if whole is None else Call((whole, *given), options)


@rule("sum")
def sum_(op: Op, input: Labels, dim: Any = None, keepdim: bool = False, dtype: object = None) -> Labels:
    return _reduce(op, input, dim, keepdim, additive=True, appends=True)


@sum_.rewrite
def _(op: Rewrite, input: fx.Node, dim: Argument = None, *arguments: Argument, **options: Argument) -> Call | None:
    if all(op.labels(input).zero[d] for d in _lost(op, input, dim)):
        return None
    return _with_removed(op, input, dim, arguments, options)


@rule("mean")
def mean(op: Op, input: Labels, dim: Any = None, keepdim: bool = False, dtype: object = None) -> Labels:
    return _reduce(op, input, dim, keepdim, additive=True, appends=True)


@mean.rewrite
def _(
    op: Rewrite, input: fx.Node, dim: Argument = None, keepdim: Argument = False, dtype: Argument = None
) -> Call | None:
    x = op.labels(input)
    lost = _lost(op, input, dim)
    if not lost:
        return None
    options: dict[str, Argument] = {} if dtype is None else {"dtype": dtype}
    if not all(x.zero[d] for d in lost):
        whole = _with_removed(op, input, dim, (keepdim,), options)
        if whole is not None:
            return whole
    dim = op.number(dim)
    share = 1.0
    for d in lost:
        share *= op.size(x.dims[d]) / size_of(x.dims[d])
    scaled = op.insert(torch.mul, (input, share))
    return Call((scaled,) if dim is None else (scaled, dim, keepdim), options)


_STATISTICS = "amax amin prod std var logsumexp argmax argmin any all median std_mean var_mean nanmean nansum".split()  # noqa: SIM905


@rule(*_STATISTICS)
def statistic(
    op: Op, input: Labels, dim: Any = None, *arguments: object, keepdim: bool = False, **options: object
) -> LabelTree:
    if dim is None or isinstance(dim, bool):
        op.freeze(input, f"reduced by {op.name}")
        return _shaped(op, Labels.plain)
    keepdim = keepdim or (bool(arguments) and arguments[-1] is True)
    kept = _reduce(op, input, dim, keepdim, additive=False, appends=_of_values(op))
    unsure = kept.never_zero()
    return _shaped(op, lambda shape: unsure if unsure.shape == tuple(shape) else _plain_frozen(op, input, shape))


@statistic.rewrite
def _rewrite_statistic(
    op: Rewrite, input: fx.Node, dim: Argument = None, *arguments: Argument, **options: Argument
) -> Call | None:
    return None if dim is None or isinstance(dim, bool) else _with_removed(op, input, dim, arguments, options)


def _of_values(op: Op) -> bool:
    """Whether the result depends on what the values are, and not on where they are."""
    reads_places = any(user.target is operator.getitem and user.args[1] == 1 for user in op.node.users)
    return "arg" not in op.name and not (op.name in ("max", "min", "median") and reads_places)


def _plain_frozen(op: Op, x: Labels, shape: Sequence[int]) -> Labels:
    op.freeze(x, f"reduced by {op.name}")
    return Labels.plain(shape)


def _shaped(op: Op, make: Callable[[Sequence[int]], Labels]) -> LabelTree:
    """The labels that `make` gives for the shape of each result."""
    value = op.value
    if isinstance(value, torch.Tensor):
        return make(value.shape)
    return tuple(make(item.shape) for item in value)


@rule("max", "min")
def extreme(op: Op, input: Labels, *arguments: Any, **options: Any) -> LabelTree:
    """Element-wise for two tensors, and a reduction for one."""
    if any(isinstance(argument, Labels) for argument in (*arguments, *options.values())):
        return elementwise.propagate(op, input, *arguments, **options)
    return statistic.propagate(op, input, *arguments, **options)


@extreme.rewrite
def _(op: Rewrite, input: fx.Node, *arguments: Argument, **options: Argument) -> Call | None:
    if any(isinstance(op.number(argument), torch.Tensor) for argument in (*arguments, *options.values())):
        return take_from_tables(op, input, *arguments, **options)
    return _rewrite_statistic(op, input, *arguments, **options)


@rule("norm", "vector_norm")
def norm(op: Op, input: Labels, p: object = 2, dim: Any = None, keepdim: bool = False, **options: object) -> Labels:
    p = options.get("ord", p)
    return _reduce(op, input, dim, keepdim, additive=p in (1, 2, "fro", 1.0, 2.0))


@rule(F.normalize)
def normalize(op: Op, input: Labels, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Labels:
    dim = axis(input, dim)
    op.sums_over(input, dim)
    if not input.zero[dim]:
        op.freeze(input.dims[dim], "normalised where it is not zero")
    return input


@rule("renorm")
def renorm(op: Op, input: Labels, p: float, dim: int, maxnorm: float) -> Labels:
    """Each slice along `dim` is divided by its norm, which is over all other dimensions."""
    for d in range(len(input.dims)):
        if d != dim % len(input.dims):
            op.sums_over(input, d)
            if not (input.zero[d] and p > 0):
                op.freeze(input.dims[d], "normalised where it is not zero")
    return input


@rule("cosine_similarity")
def cosine_similarity(op: Op, x1: Labels, x2: Labels, dim: int = 1, eps: float = 1e-8) -> Labels:
    """Three sums along `dim`; a removed channel must be zero in both operands."""
    dims = broadcast(op, [x1, x2])
    out = Labels(dims, (False,) * len(dims))
    dim = axis(out, dim)
    for x in (x1, x2):
        reached = dim - len(dims) + len(x.dims)
        if reached >= 0:
            _reduce(op, x, reached, False, additive=True)
    return out.take(d for d in range(len(dims)) if d != dim)


@rule("cdist")
def cdist(op: Op, x1: Labels, x2: Labels, p: float = 2.0, compute_mode: object = None) -> Labels:
    """Norms of differences along the last dimension; a removed channel must be zero in both operands."""
    op.unite(x1.dims[-1], x2.dims[-1])
    for x in (x1, x2):
        _reduce(op, x, -1, False, additive=True)
    leading = broadcast(op, [x1.take(range(len(x1.dims) - 2)), x2.take(range(len(x2.dims) - 2))])
    dims = (*leading, x1.dims[-2], x2.dims[-2])
    return Labels(dims, (False,) * len(dims))


@rule(F.pairwise_distance, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
def difference(op: Op, x1: Labels, x2: Labels, *arguments: object, **options: object) -> Labels:
    """The difference of two tensors, element-wise or reduced: over all dimensions, or over the last.

    Removed channels must be zero in both. The rewrite puts the zeros back, since a mean divides by the number of
    entries and a distance adds a small number to each.
    """
    dims = broadcast(op, [x1, x2])
    rank = len(op.shape)
    if rank == len(dims) and op.node.target is not F.pairwise_distance:
        return Labels(dims, (False,) * len(dims))
    for x in (x1, x2):
        _reduce(op, x, -1 if rank else None, False, additive=True)
    return Labels(dims[:rank], (False,) * rank)


@difference.rewrite
def _(op: Rewrite, x1: fx.Node, x2: fx.Node, *arguments: Argument, **options: Argument) -> Call | None:
    padded = [_with_zeros(op, x) for x in (x1, x2)] if len(op.out.dims) < len(op.labels(x1).dims) else [x1, x2]
    return None if padded == [x1, x2] else Call((*padded, *arguments), options)


def _with_zeros(op: Rewrite, input: fx.Node) -> fx.Node:
    """The input with zeros appended to each dimension that loses channels."""
    ends: list[int] = []
    for dim in reversed(op.labels(input).dims):
        ends += [0, size_of(dim) - op.size(dim)]
    return op.insert(F.pad, (input, tuple(ends))) if any(ends) else input


def _softmax(op: Op, x: Labels, dim: int | None) -> Labels:
    for d in range(len(x.dims)) if dim is None else (axis(x, dim),):
        op.freeze(x.dims[d], "softmax")
    return x.never_zero()


@rule("softmax", "log_softmax", "softmin")
def softmax(op: Op, input: Labels, dim: int | None = None, *arguments: object, **options: object) -> Labels:
    return _softmax(op, input, dim)


@rule(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def softmax_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _softmax(op, input, module.dim)

"""Reductions and softmax.

Along a channel dimension a sum is right as long as removed channels are zero; a mean divides by the original width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.channels import Labels, size_of
from fxprune.rules.elementwise import broadcast, elementwise
from fxprune.rules.registry import Call, Op, Rewrite, rule

__all__: list[str] = []


def _reduced(rank: int, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == () or dim == []:
        return tuple(range(rank))
    return tuple(d % rank for d in (dim if isinstance(dim, (tuple, list)) else (dim,)))


def _reduce(op: Op, x: Labels, dim: Any, keepdim: bool, additive: bool) -> Labels:
    reduced = _reduced(len(x.dims), dim)
    for d in reduced:
        op.enters(x, d)
        if not additive:
            op.freeze(x.dims[d], f"reduced by {_name(op)}")
        elif not x.zero[d]:
            op.freeze(x.dims[d], f"reduced by {_name(op)} where it is not zero")
    left = [d for d in range(len(x.dims)) if d not in reduced]
    if not keepdim:
        return x.take(left)
    dims = tuple(1 if d in reduced else dim for d, dim in enumerate(x.dims))
    return Labels(dims, tuple(zero and d not in reduced for d, zero in enumerate(x.zero)))


def _name(op: Op) -> str:
    target = op.node.target
    return target if isinstance(target, str) and op.module is None else getattr(target, "__name__", str(target))


@rule("sum")
def sum_(op: Op, input: Labels, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Labels:
    return _reduce(op, input, dim, keepdim, additive=True)


@rule("mean")
def mean(op: Op, input: Labels, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Labels:
    return _reduce(op, input, dim, keepdim, additive=True)


@mean.rewrite
def _(op: Rewrite, input: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Call | None:
    x = op.labels(input)
    dim = op.number(dim)
    lost = [d for d in _reduced(len(x.dims), dim) if op.changed(x.dims[d])]
    if not lost:
        return None
    share = 1.0
    for d in lost:
        share *= op.size(x.dims[d]) / size_of(x.dims[d])
    scaled = op.insert(torch.mul, (input, share))
    return Call((scaled,) if dim is None else (scaled, dim, keepdim), {} if dtype is None else {"dtype": dtype})


_STATISTICS = "amax amin prod std var logsumexp argmax argmin any all median std_mean var_mean nanmean nansum".split()  # noqa: SIM905


@rule(*_STATISTICS)
def statistic(op: Op, input: Labels, dim: Any = None, *arguments: Any, keepdim: bool = False, **options: Any) -> Any:
    if dim is None or isinstance(dim, bool):
        op.freeze(input, f"reduced by {_name(op)}")
        return _shaped(op, Labels.plain)
    keepdim = keepdim or (bool(arguments) and arguments[-1] is True)
    kept = _reduce(op, input, dim, keepdim, additive=False)
    unsure = Labels(kept.dims, (False,) * len(kept.dims))
    return _shaped(op, lambda shape: unsure if unsure.shape == tuple(shape) else _plain_frozen(op, input, shape))


def _plain_frozen(op: Op, x: Labels, shape: Any) -> Labels:
    op.freeze(x, f"reduced by {_name(op)}")
    return Labels.plain(shape)


def _shaped(op: Op, make: Any) -> Any:
    value = op.value
    if isinstance(value, torch.Tensor):
        return make(value.shape)
    return tuple(make(item.shape) for item in value)


@rule("max", "min")
def extreme(op: Op, input: Labels, *arguments: Any, **options: Any) -> Any:
    """Of two tensors it is element-wise, of one a reduction."""
    if any(isinstance(argument, Labels) for argument in (*arguments, *options.values())):
        return elementwise.propagate(op, input, *arguments, **options)
    return statistic.propagate(op, input, *arguments, **options)


@rule("norm", "vector_norm")
def norm(op: Op, input: Labels, p: Any = 2, dim: Any = None, keepdim: bool = False, **options: Any) -> Labels:
    if "ord" in options:
        p = options["ord"]
    return _reduce(op, input, dim, keepdim, additive=p in (1, 2, "fro", 1.0, 2.0))


@rule(F.normalize)
def normalize(op: Op, input: Labels, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Labels:
    op.enters(input, dim)
    if not input.zero[dim]:
        op.freeze(input.dims[dim], "normalised where it is not zero")
    return input


@rule("cosine_similarity")
def cosine_similarity(op: Op, x1: Labels, x2: Labels, dim: int = 1, eps: float = 1e-8) -> Labels:
    """Three sums along `dim`; an entry that is removed has to be zero in both."""
    dims = broadcast(op, [x1, x2])
    out = Labels(dims, (False,) * len(dims))
    for x in (x1, x2):
        reached = dim % len(dims) - len(dims) + len(x.dims)
        if reached >= 0:
            _reduce(op, x, reached, False, additive=True)
    return out.take(d for d in range(len(dims)) if d != dim % len(dims))


def _softmax(op: Op, x: Labels, dim: int | None) -> Labels:
    for d in range(len(x.dims)) if dim is None else (dim,):
        op.freeze(x.dims[d], "softmax")
    return Labels(x.dims, (False,) * len(x.dims))


@rule("softmax", "log_softmax", "softmin")
def softmax(op: Op, input: Labels, dim: int | None = None, *arguments: Any, **options: Any) -> Labels:
    return _softmax(op, input, dim)


@rule(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def softmax_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _softmax(op, input, module.dim)

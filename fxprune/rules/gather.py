"""Reads and writes by tensors of indices, and sorting: the dimension that is indexed stays whole, the others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.ops import name_of_op
from fxprune.rules.op import Op, UnsupportedCall, axis, map_values
from fxprune.rules.registry import rule

__all__: list[str] = []

_REASON = "gathered or sorted by index"


def _meet(op: Op, dim: Dim, others: list[Labels], d: int) -> Dim:
    """Dimension `d` of all operands; it is not the one that is indexed."""
    for x in others:
        if size_of(x.dims[d]) == size_of(dim):
            dim = op.unite(dim, x.dims[d])
        elif is_labelled(dim) or is_labelled(x.dims[d]):
            op.freeze(dim, _REASON)
            op.freeze(x.dims[d], _REASON)
    return dim


def _along(
    op: Op, input: Labels, dim: int, others: list[Labels], keeps_zero: bool, result: Sequence[int] | None = None
) -> Labels:
    """The result, of shape `result`, of indexing `input` and operands of the same rank along `dim`."""
    dim = axis(input, dim)
    if any(len(x.dims) != len(input.dims) for x in others):
        raise UnsupportedCall("operands of different numbers of dimensions")
    shape = op.shape if result is None else result
    dims: list[Dim] = []
    for d, size in enumerate(shape):
        if d == dim:
            for x in (input, *others):
                op.freeze(x.dims[d], _REASON)
            dims.append(size)
        else:
            met = _meet(op, input.dims[d], others, d)
            dims.append(met if size_of(met) == size else size)
    zero = tuple(keeps_zero and d != dim and is_labelled(n) and input.zero[d] for d, n in enumerate(dims))
    return Labels(tuple(dims), zero)


@rule("gather")
def gather(op: Op, input: Labels, dim: int, index: Labels, **options: object) -> Labels:
    return _along(op, input, dim, [index], keeps_zero=True)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(
    op: Op, input: Labels, dim: int, index: Labels, src: object = None, *arguments: object, **options: object
) -> Labels:
    source = options.get("src", src)
    others = [index, source] if isinstance(source, Labels) else [index]
    return _along(op, input, dim, others, keeps_zero=False)


@rule("index_add", "index_copy")
def index_add(op: Op, input: Labels, dim: int, index: Labels, source: Labels, **options: object) -> Labels:
    op.freeze(index, "used as an index")
    return _along(op, input, dim, [source], keeps_zero=False)


@rule("index_fill")
def index_fill(op: Op, input: Labels, dim: int, index: Labels, value: object = 0) -> Labels:
    op.freeze(index, "used as an index")
    return _along(op, input, dim, [], keeps_zero=False)


@rule("topk", "kthvalue", "sort", "argsort", "msort", "cummax", "cummin")
def sort(op: Op, input: Labels, *arguments: Any, **options: Any) -> Any:
    """Along one dimension; each channel of the others has values and indices of its own."""
    name = name_of_op(op.node.target)
    place = 1 if name in ("topk", "kthvalue") else 0
    given = arguments[place] if len(arguments) > place else options.get("dim", 0 if name == "msort" else -1)
    if isinstance(given, bool):
        given = options.get("dim", -1)

    def one(value: torch.Tensor, keeps_zero: bool) -> Labels:
        if len(value.shape) == len(input.dims):
            return _along(op, input, given, [], keeps_zero, value.shape)
        left = _along(op, input, given, [], keeps_zero, input.shape)
        return left.take(d for d in range(len(input.dims)) if d != axis(input, given))

    value = op.value
    if isinstance(value, torch.Tensor):
        return one(value, name == "msort")
    values, indices = value
    return one(values, True), one(indices, False)


@rule("nonzero", "argwhere")
def positions(op: Op, input: Labels, **options: object) -> Any:
    op.freeze(input, "asked where it is zero")
    return map_values(op.value)


@rule("take_along_dim", "masked_select", "masked_scatter", "take", "put")
def by_index(op: Op, *arguments: object, **options: object) -> Any:
    op.freeze((arguments, options), _REASON)
    return map_values(op.value)

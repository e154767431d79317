"""Ops that join tensors: concatenate and stack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, Labels, is_labelled, size_of
from fxprune.rules.op import Op, axis
from fxprune.rules.registry import rule
from fxprune.rules.repeat import copies
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["cat", "joined_by"]


@rule("cat", "concat", "concatenate")
def cat(op: Op, tensors: Sequence[Labels], dim: int = 0) -> Labels:
    """Copies of one fixed tensor are treated as by `repeat`."""
    out = _joined(op, tensors, dim)
    dim = axis(out, dim)
    if _is_repeated(op.node) and op.node.all_input_nodes[0] not in op.state.input_dependent:
        made = copies(op, tensors[0].dims[dim], len(tensors), len(tensors))
        if made is not None:
            return out.replace(dim, np.repeat(made, size_of(tensors[0].dims[dim])), zero=False)
    return out


def joined_by(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node joins, if they are listed."""
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    return [x for x in tensors if isinstance(x, fx.Node)] if isinstance(tensors, (list, tuple)) else []


def _is_repeated(node: fx.Node) -> bool:
    tensors = joined_by(node)
    return len(tensors) > 1 and len(set(tensors)) == 1


@cat.rewrite
def _(op: Rewrite, tensors: Sequence[fx.Node], dim: Argument = 0) -> Call | None:
    joined = op.out.dims[op.number(dim)]
    if not _is_repeated(op.node) or not op.changed(joined):
        return None
    repeated = op.labels(tensors[0]).dims[op.number(dim)]
    if op.changed(repeated):
        return None
    return Call((tensors[: op.size(joined) // size_of(repeated)], dim))


def _joined(op: Op, tensors: Sequence[Labels], dim: int) -> Labels:
    # torch skips tensors of shape (0,), whatever the shape of the others is.
    tensors = [x for x in tensors if x.shape != (0,)]
    if not tensors:
        return Labels.plain(op.shape)
    rank = len(tensors[0].dims)
    dim = axis(tensors[0], dim)
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
def cat_by_name(op: Op, tensors: Sequence[Labels]) -> Labels:
    """As `cat`, along the dimension that the name stands for; tensors of fewer dimensions get some first."""
    dim = {"hstack": 1, "dstack": 2}.get(op.name, 0)
    if min(len(x.dims) for x in tensors) <= max(dim, 1):
        op.freeze(tensors, "stacked along a dimension of its own")
        return Labels.plain(op.shape)
    return _joined(op, tensors, dim)


def _fixed(op: Op, n: int) -> Ids:
    """Ids for a part without channels, which cannot be pruned."""
    ids = op.ids.fresh(n)
    op.freeze(ids, "joined to channels, but is none")
    return ids


@rule("stack")
def stack(op: Op, tensors: Sequence[Labels], dim: int = 0) -> Labels:
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

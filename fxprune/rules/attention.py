"""Attention: the fused op. Attention spelt out is matmul and softmax."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.rules.linear import contract
from fxprune.rules.registry import Call, Op, Rewrite, rule

__all__: list[str] = []


@rule(F.scaled_dot_product_attention)
def attention(
    op: Op,
    query: Labels,
    key: Labels,
    value: Labels,
    attn_mask: Labels | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Labels:
    contract(op, query, -1, key, -1)
    for x in (query, key, value):
        op.freeze(x.dims[-2], "attention is over this dimension")
    lead: list[Dim] = list(query.dims[:-2])
    for d in range(-3, -1 - max(len(key.dims), len(value.dims)), -1):
        for x in (key, value):
            if -d <= len(x.dims) and -d <= len(query.dims) and size_of(x.dims[d]) == size_of(query.dims[d]):
                lead[d + 2] = op.unite(lead[d + 2], x.dims[d])
            elif -d <= len(x.dims):
                op.freeze(x.dims[d], "broadcast in attention")
                op.freeze(lead[d + 2], "broadcast in attention")
    if attn_mask is not None:
        for d in range(3, len(attn_mask.dims) + 1):
            if size_of(attn_mask.dims[-d]) != 1:
                op.unite(lead[-d + 2], attn_mask.dims[-d])
        for dim in attn_mask.dims[-2:]:
            op.freeze(dim, "attention is over this dimension")
    zero = tuple(value.zero[:-2]) if len(value.dims) == len(query.dims) else (False,) * len(lead)
    return Labels((*lead, query.shape[-2], value.dims[-1]), (*zero, False, value.zero[-1]))


@attention.flops
def _(op: Op, out: Labels, query: Labels, key: Labels, value: Labels, *args: Any, **kwargs: Any) -> list[Term]:
    return [term(*query.dims, key.dims[-2]), term(*query.dims[:-1], key.dims[-2], value.dims[-1])]


@attention.rewrite
def _(
    op: Rewrite,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
) -> Call | None:
    head = op.labels(query).dims[-1]
    if scale is not None or not is_labelled(head) or not op.changed(head):
        return None
    scale = 1.0 / math.sqrt(size_of(head))
    kwargs = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    return Call((query, key, value), {**kwargs, **({"enable_gqa": enable_gqa} if enable_gqa else {})})

"""Scaled dot-product attention, the fused op. Attention that is written out is matmul and softmax."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.flops import attention_factors
from fxprune.rules.linear import contract
from fxprune.rules.op import Op, UnsupportedCall
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__: list[str] = []

_OVER_TOKENS = "attention is over this dimension"


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
    rank = len(query.dims)
    if len(op.shape) != rank:
        raise UnsupportedCall(f"keys or values with more dimensions than the queries, which have {rank}")
    contract(op, query, -1, key, -1)
    for x in (query, key, value):
        op.freeze(x.dims[-2], _OVER_TOKENS)
    lead: list[Dim] = list(query.dims[:-2])
    for d in range(-3, -1 - max(len(key.dims), len(value.dims)), -1):
        for x in (key, value):
            if -d <= len(x.dims) and size_of(x.dims[d]) == size_of(query.dims[d]):
                lead[d + 2] = op.unite(lead[d + 2], x.dims[d])
            elif -d <= len(x.dims):
                op.freeze(x.dims[d], "broadcast in attention")
                op.freeze(lead[d + 2], "broadcast in attention")
    if attn_mask is not None:
        for d in range(3, len(attn_mask.dims) + 1):
            if size_of(attn_mask.dims[-d]) != 1:
                op.unite(lead[-d + 2], attn_mask.dims[-d])
        for dim in attn_mask.dims[-2:]:
            op.freeze(dim, _OVER_TOKENS)
    zero = value.zero[:-2] if len(value.dims) == rank else (False,) * len(lead)
    return Labels((*lead, query.shape[-2], value.dims[-1]), (*zero, False, value.zero[-1]))


@attention.flops
def _(op: Op, out: Labels, query: Labels, key: Labels, value: Labels, *args: object, **kwargs: object) -> list[Term]:
    return [term(*factors) for factors in attention_factors(query.dims, key.dims, value.dims)]


@attention.rewrite
def _(
    op: Rewrite,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    attn_mask: Argument = None,
    dropout_p: Argument = 0.0,
    is_causal: Argument = False,
    scale: Argument = None,
    enable_gqa: Argument = False,
) -> Call | None:
    """The default scale depends on the width of a head, so it is written out when the width changes."""
    head = op.labels(query).dims[-1]
    if scale is not None or not is_labelled(head) or not op.changed(head):
        return None
    scale = 1.0 / math.sqrt(size_of(head))
    kwargs: dict[str, Argument] = {
        "attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale,
    }  # fmt: skip
    return Call((query, key, value), {**kwargs, **({"enable_gqa": enable_gqa} if enable_gqa else {})})

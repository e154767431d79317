"""Local response norm: each channel is divided by a sum of squares over its neighbours among the original channels."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Labels
from fxprune.rules.batch_norm import NORMALISED_OVER
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__: list[str] = []


@rule("local_response_norm")
def response_norm(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    """Channels that are zero when they are removed add nothing to the sums of their neighbours, and stay zero."""
    op.sums_over(input, 1)
    if not input.zero[1]:
        op.freeze(input.dims[1], NORMALISED_OVER)
    return input


@rule(nn.LocalResponseNorm)
def response_norm_module(op: Op, input: Labels) -> Labels:
    return response_norm.propagate(op, input)


@response_norm.rewrite
def _(op: Rewrite, input: fx.Node, *arguments: Argument, **options: Argument) -> Call | None:
    return _among_zeros(op, input, arguments, options)


@response_norm_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
    norm: Any = op.module
    return _among_zeros(op, input, (norm.size, norm.alpha, norm.beta, norm.k), {})


def _among_zeros(
    op: Rewrite, input: fx.Node, arguments: tuple[Argument, ...], options: dict[str, Argument]
) -> Call | None:
    """The norm with zeros at the places of the removed channels."""
    dims = op.labels(input).dims
    if isinstance(dims[1], int) or not op.changed(dims[1]):
        return None
    kept = op.kept(dims[1])
    # The channel after the last one is zero.
    places = np.where(kept, np.cumsum(kept) - 1, kept.sum())
    padded = op.insert(F.pad, (input, (*(0, 0) * (len(dims) - 2), 0, 1)))
    whole = op.insert(operator.getitem, (padded, (slice(None), [int(k) for k in places])))
    normed = op.insert(F.local_response_norm, (whole, *arguments), options)
    return Call((normed, (slice(None), [int(k) for k in np.flatnonzero(kept)])), target=operator.getitem)

"""Normalisation.

BatchNorm and InstanceNorm treat every channel on its own. LayerNorm, RMSNorm and GroupNorm take statistics over
channels, so what they normalise over stays whole; of a GroupNorm whole norm groups can go.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxprune.channels import Labels, size_of
from fxprune.polynomial import Term, term
from fxprune.rules.registry import Call, Op, Rewrite, numel, rule

__all__: list[str] = []

_OVER_CHANNELS = "normalised over"


def _per_channel(op: Op, x: Labels, parameters: list[Labels | None], affine: bool) -> Labels:
    out = x.dims[1]
    for labels in parameters:
        if labels is not None and size_of(out) > 1:
            out = op.unite(out, labels.dims[0])
    return Labels((x.dims[0], out, *x.dims[2:]), (False, affine or x.zero[1], *(False,) * (len(x.dims) - 2)))


@rule(_BatchNorm, _InstanceNorm)
def norm_module(op: Op, input: Labels) -> Labels:
    names = ("weight", "bias", "running_mean", "running_var")
    affine = op.weight("weight") is not None
    for dim in input.dims[2:] + input.dims[:1]:
        op.freeze(dim, _OVER_CHANNELS)
    return _per_channel(op, input, [op.weight(name) for name in names], affine)


@norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    affine = op.weight("weight") is not None
    running = op.weight("running_mean") is not None
    if isinstance(op.module, _BatchNorm) and running:
        return [numel(input, 2 if affine else 1)]
    return [numel(input, 5 if affine else 4)]


@norm_module.rewrite
def _(op: Rewrite, input: Any) -> Call | None:
    module: Any = op.module
    module.num_features = op.size(op.out.dims[1])
    return None


@rule(F.batch_norm)
def batch_norm(
    op: Op,
    input: Labels,
    running_mean: Labels | None,
    running_var: Labels | None,
    weight: Labels | None = None,
    bias: Labels | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Labels:
    """With `training` (weight standardisation) the last dimension may lose channels: zeros stand in for them."""
    by_statistics = training or running_mean is None
    for d in (0, *range(2, len(input.dims))) if by_statistics else ():
        if d != len(input.dims) - 1 or d < 2 or not input.zero[d]:
            op.freeze(input.dims[d], _OVER_CHANNELS)
    out = _per_channel(op, input, [running_mean, running_var, weight, bias], weight is not None)
    return out if by_statistics else Labels(out.dims, (input.zero[0] and bias is None, out.zero[1], *out.zero[2:]))


@batch_norm.flops
def _(
    op: Op,
    out: Labels,
    input: Labels,
    running_mean: Labels | None,
    running_var: Labels | None,
    weight: Labels | None = None,
    bias: Labels | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Term]:
    if not training:
        return [numel(input, 1 if weight is None else 2)]
    scale = 4 if weight is None else 5
    return [term(scale, *input.dims[:-1], size_of(input.dims[-1]))]


@batch_norm.rewrite
def _(op: Rewrite, input: Any, *arguments: Any, **options: Any) -> Call | None:
    last = op.labels(input).dims[-1]
    if len(op.out.dims) < 3 or not op.changed(last):
        return None
    left = op.size(last)
    padded = op.insert(F.pad, (input, (0, size_of(last) - left)))
    whole = op.insert(F.batch_norm, (padded, *arguments), options)
    every = (slice(None),) * (len(op.out.dims) - 1)
    return Call((whole, (*every, slice(0, left))), target=operator.getitem)


@rule(F.instance_norm)
def instance_norm(
    op: Op,
    input: Labels,
    running_mean: Labels | None = None,
    running_var: Labels | None = None,
    weight: Labels | None = None,
    bias: Labels | None = None,
    **options: Any,
) -> Labels:
    return _per_channel(op, input, [running_mean, running_var, weight, bias], weight is not None)


@instance_norm.flops
def _(op: Op, out: Labels, input: Labels, *args: Any, weight: Labels | None = None, **options: Any) -> list[Term]:
    affine = weight is not None or (len(args) > 2 and args[2] is not None)
    return [numel(input, 5 if affine else 4)]


def _over_trailing(op: Op, x: Labels, count: int, weights: list[Labels | None]) -> Labels:
    first = len(x.dims) - count
    for dim in x.dims[first:]:
        op.freeze(dim, _OVER_CHANNELS)
    for labels in weights:
        if labels is not None:
            op.freeze(labels, _OVER_CHANNELS)
    shifts = len(weights) > 1 and weights[1] is not None
    return Labels(x.dims, (*(zero and not shifts for zero in x.zero[:first]), *(False,) * count))


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _over_trailing(op, input, len(module.normalized_shape), [op.weight("weight"), op.weight("bias")])


@layer_norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    if isinstance(op.module, nn.RMSNorm):
        return []
    return [numel(input, 4 if op.weight("weight") is None else 5)]


@rule(F.layer_norm, F.rms_norm)
def layer_norm(
    op: Op,
    input: Labels,
    normalized_shape: Any,
    weight: Labels | None = None,
    bias: Any = None,
    eps: Any = None,
) -> Labels:
    bias = bias if isinstance(bias, Labels) else None
    return _over_trailing(op, input, len(normalized_shape), [weight, bias])


@layer_norm.flops
def _(op: Op, out: Labels, input: Labels, normalized_shape: Any, weight: Any = None, *args: Any, **kw: Any) -> list[Term]:
    if op.node.target is F.rms_norm:
        return []
    return [numel(input, 4 if weight is None else 5)]


def _by_norm_groups(op: Op, x: Labels, groups: int, weights: list[Labels | None]) -> Labels:
    for dim in x.dims[2:]:
        op.freeze(dim, _OVER_CHANNELS)
    out = x.dims[1]
    if groups == 1:
        op.freeze(out, _OVER_CHANNELS)
    elif not isinstance(out, int):
        units = op.unite_axis(out.reshape(groups, -1), 0)
        out = np.repeat(units, size_of(out) // groups)
    normalised = Labels((x.dims[0], out, *x.dims[2:]), x.zero)
    return _per_channel(op, normalised, weights, weights[0] is not None)


@rule(nn.GroupNorm)
def group_norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _by_norm_groups(op, input, module.num_groups, [op.weight("weight"), op.weight("bias")])


@group_norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    return [numel(input, 4 if op.weight("weight") is None else 5)]


def _norm_groups_left(op: Rewrite, groups: int) -> int:
    channels = op.out.dims[1]
    return op.size(channels) * groups // size_of(channels)


@group_norm_module.rewrite
def _(op: Rewrite, input: Any) -> Call | None:
    module: Any = op.module
    module.num_groups = _norm_groups_left(op, module.num_groups)
    module.num_channels = op.size(op.out.dims[1])
    return None


@rule(F.group_norm)
def group_norm(
    op: Op,
    input: Labels,
    num_groups: int,
    weight: Labels | None = None,
    bias: Labels | None = None,
    eps: float = 1e-5,
) -> Labels:
    return _by_norm_groups(op, input, num_groups, [weight, bias])


@group_norm.flops
def _(op: Op, out: Labels, input: Labels, num_groups: int, weight: Any = None, *args: Any, **kw: Any) -> list[Term]:
    return [numel(input, 4 if weight is None else 5)]


@group_norm.rewrite
def _(op: Rewrite, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Call | None:
    return Call((input, _norm_groups_left(op, op.number(num_groups)), weight, bias, eps))

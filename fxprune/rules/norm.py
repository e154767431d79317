"""Normalisation.

BatchNorm and InstanceNorm treat every channel on its own. LayerNorm, RMSNorm and GroupNorm take statistics over
channels, so what they normalise over stays whole; of a GroupNorm whole norm groups can go.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from fxprune.channels import Labels, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.rules.registry import Call, Op, Rewrite, numel, rule
from fxprune.rules.stand_in import append_removed, sum_over_appended
from fxprune.tracing.traced_module import DivideBySpectralNorm

__all__: list[str] = []

_OVER_CHANNELS = "normalised over"


def _is_zero(labels: Labels | None, at: int = -1) -> bool:
    """Whether a removed entry of a weight is zero: so it is in a parameter, not in `1 + parameter`."""
    return labels is not None and labels.zero[at]


def _per_channel(op: Op, x: Labels, parameters: Sequence[Labels | None]) -> Labels:
    """`parameters`: mean and variance that are given, the weight and the bias that follow."""
    mean, _, weight, bias = parameters
    out = x.dims[1]
    for labels in parameters:
        if labels is not None and size_of(out) > 1:
            out = op.unite(out, labels.dims[0])
    zero = _is_zero(weight) or (x.zero[1] and (mean is None or _is_zero(mean)))
    zero = zero and (bias is None or _is_zero(bias))
    return Labels((x.dims[0], out, *x.dims[2:]), (False, zero, *(False,) * (len(x.dims) - 2)))


@rule(_BatchNorm, _InstanceNorm)
def norm_module(op: Op, input: Labels) -> Labels:
    names = ("running_mean", "running_var", "weight", "bias")
    for dim in input.dims[2:] + input.dims[:1]:
        op.freeze(dim, _OVER_CHANNELS)
    return _per_channel(op, input, [op.weight(name) for name in names])


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
    if by_statistics:
        op.sums_over(input, len(input.dims) - 1)
    for d in (0, *range(2, len(input.dims))) if by_statistics else ():
        if d != len(input.dims) - 1 or d < 2 or not input.zero[d]:
            op.freeze(input.dims[d], _OVER_CHANNELS)
    out = _per_channel(op, input, (running_mean, running_var, weight, bias))
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
    for dim in input.dims[2:]:
        op.freeze(dim, _OVER_CHANNELS)
    return _per_channel(op, input, (running_mean, running_var, weight, bias))


@instance_norm.flops
def _(op: Op, out: Labels, input: Labels, *args: Any, weight: Labels | None = None, **options: Any) -> list[Term]:
    affine = weight is not None or (len(args) > 2 and args[2] is not None)
    return [numel(input, 5 if affine else 4)]


_RELUCTANT = "normalised over; zeros stand in for what is removed"


def _over_channels(op: Op, x: Labels, d: int, weights: list[Labels | None], at: int = -1) -> Labels:
    """Statistics over the channels of dimension `d`: they can go where what they have in it can stand in for them.

    The weights have them in dimension `at`.
    """
    dim = x.dims[d]
    bias = weights[1] if len(weights) > 1 else None
    zero = _is_zero(weights[0], at) and (bias is None or _is_zero(bias, at))
    node = next(node for node in op.node.all_input_nodes if op.labels_of[node.name] is x)
    if x.zero[d]:
        op.sums_over(x, d)
    elif not sum_over_appended(op, node, d):
        op.freeze(dim, _OVER_CHANNELS)
    op.mark_last_resort(dim, _RELUCTANT)
    for labels in weights:
        if labels is not None and size_of(dim) > 1:
            dim = op.unite(dim, labels.dims[at])
    return x.replace(d, dim, zero=zero)


def _stand_in(op: Rewrite, input: Any, d: int, function: Any, weights: list[Any], arguments: Any, at: int = -1) -> Call:
    """Normalise with what the removed channels have in it, which most often is zero, then cut them off."""
    dim, rank = op.out.dims[d], len(op.out.dims)
    lost = size_of(dim) - op.size(dim)
    if op.labels(input).zero[d]:
        padded: fx.Node | None = op.insert(F.pad, (input, (*(0,) * (2 * (rank - 1 - d)), 0, lost)))
    else:
        padded = append_removed(op, input, d)
    end = (*(0,) * (2 * (-1 - at)), 0, lost)
    long = [None if weight is None else op.insert(F.pad, (weight, end)) for weight in weights]
    whole = op.insert(function, arguments(padded, *long))
    index = (*(slice(None),) * d, slice(0, op.size(dim)))
    return Call((whole, index), target=operator.getitem)


def _channel_of_trailing(sizes: Sequence[int]) -> int:
    """Of the dimensions that are normalised over the last, but for such of a single entry, counted from the end."""
    return next((d for d in range(-1, -1 - len(sizes), -1) if sizes[d] != 1), -1)


def _over_trailing(op: Op, x: Labels, count: int, weights: list[Labels | None]) -> Labels:
    rank, first = len(x.dims), len(x.dims) - count
    at = _channel_of_trailing([size_of(dim) for dim in x.dims[first:]])
    for d in range(first, rank):
        if d != rank + at:
            op.freeze(x.dims[d], _OVER_CHANNELS)
            for labels in weights:
                if labels is not None:
                    op.freeze(labels.dims[d - rank], _OVER_CHANNELS)
    shifts = len(weights) > 1 and weights[1] is not None
    out = _over_channels(op, x, rank + at, weights, at)
    return Labels(out.dims, tuple(out.zero[d] and (d == rank + at or (d < first and not shifts)) for d in range(rank)))


def _over_trailing_flops(x: Labels, count: int, affine: bool) -> list[Term]:
    d = len(x.dims) + _channel_of_trailing([size_of(dim) for dim in x.dims[len(x.dims) - count :]])
    return [term(5 if affine else 4, *x.dims[:d], size_of(x.dims[d]), *x.dims[d + 1 :])]


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _over_trailing(op, input, len(module.normalized_shape), [op.weight("weight"), op.weight("bias")])


@layer_norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    module: Any = op.module
    affine = op.weight("weight") is not None
    return [] if isinstance(module, nn.RMSNorm) else _over_trailing_flops(input, len(module.normalized_shape), affine)


@layer_norm_module.rewrite
def _(op: Rewrite, input: Any) -> Call | None:
    module: Any = op.module
    original: Any = op.original
    shape = tuple(original.normalized_shape)
    at = _channel_of_trailing(shape)
    if not op.changed(op.out.dims[at]):
        return None
    left = list(shape)
    left[at] = op.size(op.out.dims[at])
    module.normalized_shape = tuple(left)
    weight, d, eps = op.insert_parameter("weight"), len(op.out.dims) + at, module.eps
    if isinstance(module, nn.RMSNorm):
        return _stand_in(op, input, d, F.rms_norm, [weight], lambda x, w: (x, shape, w, eps), at)
    weights = [weight, op.insert_parameter("bias")]
    return _stand_in(op, input, d, F.layer_norm, weights, lambda x, w, b: (x, shape, w, b, eps), at)


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
def _(op: Op, out: Labels, input: Labels, shape: Any, weight: Any = None, *args: Any, **kw: Any) -> list[Term]:
    return [] if op.node.target is F.rms_norm else _over_trailing_flops(input, len(shape), weight is not None)


@layer_norm.rewrite
def _(
    op: Rewrite, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Call | None:
    rank = len(op.out.dims)
    shape = tuple(op.value.shape[rank - len(op.number(normalized_shape)) :])
    at = _channel_of_trailing(shape)
    if not op.changed(op.out.dims[at]):
        return None
    if op.node.target is F.rms_norm:
        epsilon = op.node.kwargs.get("eps", op.node.args[3] if len(op.node.args) > 3 else None)
        return _stand_in(op, input, rank + at, F.rms_norm, [weight], lambda x, w: (x, shape, w, epsilon), at)
    return _stand_in(op, input, rank + at, F.layer_norm, [weight, bias], lambda x, w, b: (x, shape, w, b, eps), at)


@rule("_weight_norm")
def weight_norm(op: Op, v: Labels, g: Labels, dim: int = 0) -> Labels:
    """The norm of each slice of `v` along `dim`; removed entries add nothing to it."""
    out = v.replace(dim, op.unite(v.dims[dim], g.dims[dim]), zero=g.zero[dim] or v.zero[dim])
    for d in range(len(v.dims)):
        if d != dim % len(v.dims):
            op.sums_over(v, d)
            if not v.zero[d]:
                op.freeze(v.dims[d], _OVER_CHANNELS)
    return out


def _over_spectral_norm(op: Op, weight: Labels, u: Labels, v: Labels, dim: int) -> Labels:
    """The weight, as a matrix of the rows `dim`, divided by `u @ matrix @ v`, to which removed entries add nothing."""
    columns, *rest = (d for d in range(len(weight.dims)) if d != dim)
    for d in rest:
        op.freeze(weight.dims[d], "spectral norm")
    for d, vector in ((dim, u.dims[0]), (columns, v.dims[0])):
        op.sums_over(weight, d)
        if isinstance(vector, np.ndarray) and size_of(weight.dims[d]) > 1:
            op.unite(weight.dims[d], op.unite_axis(vector.reshape(size_of(weight.dims[d]), -1), 0))
    return weight


@rule(DivideBySpectralNorm)
def divide_by_spectral_norm(op: Op, weight: Labels, u: Labels, v: Labels) -> Labels:
    module: Any = op.module
    return _over_spectral_norm(op, weight, u, v, module.hook.dim)


@rule(_SpectralNorm)
def spectral_norm(op: Op, weight: Labels) -> Labels:
    module: Any = op.module
    u, v = op.weight("_u"), op.weight("_v")
    assert u is not None
    assert v is not None
    return _over_spectral_norm(op, weight, u, v, module.dim)


def _by_norm_groups(op: Op, x: Labels, groups: int, weights: list[Labels | None]) -> Labels:
    for dim in x.dims[2:]:
        op.freeze(dim, _OVER_CHANNELS)
    if groups == 1:
        out = _over_channels(op, x, 1, weights)
        return Labels(out.dims, (False, out.zero[1], *(False,) * (len(x.dims) - 2)))
    units = x.dims[1]
    if not isinstance(units, int):
        units = np.repeat(op.unite_axis(units.reshape(groups, -1), 0), size_of(units) // groups)
    normalised = Labels((x.dims[0], units, *x.dims[2:]), x.zero)
    return _per_channel(op, normalised, (None, None, *weights))


def _by_norm_groups_flops(x: Labels, groups: int, affine: bool) -> list[Term]:
    channels = size_of(x.dims[1]) if groups == 1 else x.dims[1]
    return [term(5 if affine else 4, x.dims[0], channels, *x.dims[2:])]


def _norm_groups_left(op: Rewrite, groups: int) -> int:
    channels = op.out.dims[1]
    return op.size(channels) * groups // size_of(channels)


@rule(nn.GroupNorm)
def group_norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _by_norm_groups(op, input, module.num_groups, [op.weight("weight"), op.weight("bias")])


@group_norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    module: Any = op.module
    return _by_norm_groups_flops(input, module.num_groups, op.weight("weight") is not None)


@group_norm_module.rewrite
def _(op: Rewrite, input: Any) -> Call | None:
    module: Any = op.module
    original: Any = op.original
    if not op.changed(op.out.dims[1]):
        return None
    module.num_channels = op.size(op.out.dims[1])
    if original.num_groups == 1:
        weights = [op.insert_parameter("weight"), op.insert_parameter("bias")]
        return _stand_in(op, input, 1, F.group_norm, weights, lambda x, w, b: (x, 1, w, b, module.eps))
    module.num_groups = _norm_groups_left(op, original.num_groups)
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
    return _by_norm_groups_flops(input, num_groups, weight is not None)


@group_norm.rewrite
def _(op: Rewrite, input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Call | None:
    if not op.changed(op.out.dims[1]):
        return None
    groups = op.number(num_groups)
    if groups == 1:
        return _stand_in(op, input, 1, F.group_norm, [weight, bias], lambda x, w, b: (x, 1, w, b, eps))
    return Call((input, _norm_groups_left(op, groups), weight, bias, eps))

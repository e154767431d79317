"""LayerNorm, RMSNorm and GroupNorm: their statistics are over channels.

The statistics must not change when channels go. So the channels are pruned only as a last resort, and the norm sees the
entries that removed channels have in the zero-masked model, most often zeros. Of a GroupNorm whole norm groups can go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Labels, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.rules.batch_norm import NORMALISED_OVER, is_zero, per_channel
from fxprune.rules.op import BY_SIZE, Op
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite
from fxprune.rules.stand_in import append_removed, sum_over_appended

__all__: list[str] = []

_LAST_RESORT = "normalised over; zeros stand in for what is removed"


def _over_channels(op: Op, x: Labels, d: int, weights: list[Labels | None], at: int = -1) -> Labels:
    """A norm over the channels of dimension `d`, which go as a last resort; dimension `at` of the weights has them too.

    A channel can go if its entries in the zero-masked model are known, so that they can be put in its place.
    """
    dim = x.dims[d]
    bias = weights[1] if len(weights) > 1 else None
    zero = is_zero(weights[0], at) and (bias is None or is_zero(bias, at))
    node = next(node for node in op.node.all_input_nodes if op.labels_of[node.name] is x)
    if x.zero[d]:
        op.sums_over(x, d)
    elif not sum_over_appended(op, node, d):
        op.freeze(dim, NORMALISED_OVER)
    op.mark_last_resort(dim, _LAST_RESORT)
    for labels in weights:
        if labels is not None and size_of(dim) > 1:
            dim = op.unite(dim, labels.dims[at])
    return x.replace(d, dim, zero=zero)


def _stand_in(
    op: Rewrite,
    input: fx.Node,
    d: int,
    function: Callable[..., Any],
    weights: Sequence[Argument],
    arguments: Callable[..., tuple[Argument, ...]],
    at: int = -1,
) -> Call:
    """Append the entries of the removed channels, normalise, and cut them off again.

    Args:
        op: the norm.
        input: what it normalises.
        d: the dimension that loses channels.
        function: the functional norm.
        weights: its weights, padded with zeros in dimension `at`.
        arguments: the arguments of `function`, from the input and the weights of the original width.
        at: the dimension of the weights.
    """
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
    """The last of the dimensions that are normalised over, except those of a single entry, counted from the end."""
    return next((d for d in range(-1, -1 - len(sizes), -1) if sizes[d] != 1), -1)


def _over_trailing(op: Op, x: Labels, count: int, weights: list[Labels | None]) -> Labels:
    rank, first = len(x.dims), len(x.dims) - count
    at = _channel_of_trailing([size_of(dim) for dim in x.dims[first:]])
    for d in range(first, rank):
        if d != rank + at:
            op.freeze(x.dims[d], NORMALISED_OVER)
            for labels in weights:
                if labels is not None:
                    op.freeze(labels.dims[d - rank], NORMALISED_OVER)
    shifts = len(weights) > 1 and weights[1] is not None
    out = _over_channels(op, x, rank + at, weights, at)
    return Labels(out.dims, tuple(out.zero[d] and (d == rank + at or (d < first and not shifts)) for d in range(rank)))


def _over_trailing_flops(x: Labels, count: int, affine: bool) -> list[Term]:
    d = len(x.dims) + _channel_of_trailing([size_of(dim) for dim in x.dims[len(x.dims) - count :]])
    return [term(5 if affine else 4, *x.dims[:d], size_of(x.dims[d]), *x.dims[d + 1 :])]


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    weights = [op.find_weight("weight"), op.find_weight("bias")]
    return _over_trailing(op, input, len(module.normalized_shape), weights)


@layer_norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    module: Any = op.module
    affine = op.find_weight("weight") is not None
    return [] if isinstance(module, nn.RMSNorm) else _over_trailing_flops(input, len(module.normalized_shape), affine)


@layer_norm_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
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
    op: Op, input: Labels, normalized_shape: Any, weight: Labels | None = None, bias: object = None, eps: object = None
) -> Labels:
    """Of RMS norm the fourth argument is `eps`."""
    bias = bias if isinstance(bias, Labels) else None
    return _over_trailing(op, input, len(normalized_shape), [weight, bias])


@layer_norm.flops
def _(
    op: Op, out: Labels, input: Labels, normalized_shape: Any, weight: Any = None, *args: Any, **kw: Any
) -> list[Term]:
    return (
        [] if op.node.target is F.rms_norm else _over_trailing_flops(input, len(normalized_shape), weight is not None)
    )


@layer_norm.rewrite
def _(
    op: Rewrite, input: fx.Node, normalized_shape: Any, weight: Argument = None, bias: Argument = None, eps: Any = 1e-5
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


def _by_norm_groups(op: Op, x: Labels, groups: int, weights: list[Labels | None]) -> Labels:
    for dim in x.dims[2:]:
        op.freeze(dim, NORMALISED_OVER)
    if groups == 1:
        out = _over_channels(op, x, 1, weights)
        return Labels(out.dims, (False, out.zero[1], *(False,) * (len(x.dims) - 2)))
    units = x.dims[1]
    if not isinstance(units, int):
        units = np.repeat(op.unite_axis(units.reshape(groups, -1), 0), size_of(units) // groups)
    normalised = Labels((x.dims[0], units, *x.dims[2:]), x.zero)
    return per_channel(op, normalised, (None, None, *weights))


def _by_norm_groups_flops(x: Labels, groups: int, affine: bool) -> list[Term]:
    channels = size_of(x.dims[1]) if groups == 1 else x.dims[1]
    return [term(5 if affine else 4, x.dims[0], channels, *x.dims[2:])]


def _norm_groups_left(op: Rewrite, groups: int) -> int:
    channels = op.out.dims[1]
    return op.size(channels) * groups // size_of(channels)


@rule(nn.GroupNorm)
def group_norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _by_norm_groups(op, input, module.num_groups, [op.find_weight("weight"), op.find_weight("bias")])


@group_norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    module: Any = op.module
    return _by_norm_groups_flops(input, module.num_groups, op.find_weight("weight") is not None)


@group_norm_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
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
    op: Op, input: Labels, num_groups: int, weight: Labels | None = None, bias: Labels | None = None, eps: object = None
) -> Labels:
    if not op.is_static(op.argument(1, "num_groups")):
        op.freeze(input.dims[1], BY_SIZE)
    return _by_norm_groups(op, input, num_groups, [weight, bias])


@group_norm.flops
def _(
    op: Op, out: Labels, input: Labels, num_groups: int, weight: Labels | None = None, *args: object, **kw: object
) -> list[Term]:
    return _by_norm_groups_flops(input, num_groups, weight is not None)


@group_norm.rewrite
def _(
    op: Rewrite, input: fx.Node, num_groups: Any, weight: Argument = None, bias: Argument = None, eps: Any = 1e-5
) -> Call | None:
    if not op.changed(op.out.dims[1]):
        return None
    groups = op.number(num_groups)
    if groups == 1:
        return _stand_in(op, input, 1, F.group_norm, [weight, bias], lambda x, w, b: (x, 1, w, b, eps))
    return Call((input, _norm_groups_left(op, groups), weight, bias, eps))

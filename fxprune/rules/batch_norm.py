"""BatchNorm and InstanceNorm: every channel is normalised by itself."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import fx
from torch.fx.node import Argument
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxprune.channels import Labels, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.rules.op import Op, UnsupportedCall, elements
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["NORMALISED_OVER", "is_zero", "per_channel"]

NORMALISED_OVER = "normalised over"
# The arguments of the functions that follow the input.
_PARAMETERS = ("running_mean", "running_var", "weight", "bias")


def _named(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip((*_PARAMETERS, "training"), args, strict=False)), **options}


def is_zero(labels: Labels | None, at: int = -1) -> bool:
    """Whether the removed entries of a weight are zero, as in a parameter; in `1 + parameter` they are not."""
    return labels is not None and labels.zero[at]


def per_channel(op: Op, x: Labels, parameters: Sequence[Labels | None]) -> Labels:
    """A norm of each channel by itself.

    Args:
        op: the norm.
        x: its input.
        parameters: mean, variance, weight and bias of every channel; None for those that the norm does not have.
    """
    if len(x.dims) < 2:
        raise UnsupportedCall("an input without a dimension of channels")
    mean, _, weight, bias = parameters
    out = x.dims[1]
    for labels in parameters:
        if labels is not None and size_of(out) > 1:
            out = op.unite(out, labels.dims[0])
    zero = is_zero(weight) or (x.zero[1] and (mean is None or is_zero(mean)))
    zero = zero and (bias is None or is_zero(bias))
    return Labels((x.dims[0], out, *x.dims[2:]), (False, zero, *(False,) * (len(x.dims) - 2)))


@rule(_BatchNorm, _InstanceNorm)
def norm_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    if isinstance(op.module, _InstanceNorm) and len(input.dims) == module._get_no_batch_dim():
        raise UnsupportedCall("an input without a batch dimension")
    for dim in input.dims[2:] + input.dims[:1]:
        op.freeze(dim, NORMALISED_OVER)
    return per_channel(op, input, [op.find_weight(name) for name in _PARAMETERS])


@norm_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    affine = op.find_weight("weight") is not None
    running = op.find_weight("running_mean") is not None
    if isinstance(op.module, _BatchNorm) and running:
        return [elements(input, 2 if affine else 1)]
    return [elements(input, 5 if affine else 4)]


@norm_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
    module: Any = op.module
    module.num_features = op.size(op.out.dims[1])
    return None


@rule(F.batch_norm)
def batch_norm(op: Op, input: Labels, *args: Any, **options: Any) -> Labels:
    """With `training`, as in weight standardisation, the last dimension may lose channels; it is padded with zeros."""
    given = _named(args, options)
    by_statistics = given.get("training") or given["running_mean"] is None
    if by_statistics:
        op.sums_over(input, len(input.dims) - 1)
    for d in (0, *range(2, len(input.dims))) if by_statistics else ():
        if d != len(input.dims) - 1 or d < 2 or not input.zero[d]:
            op.freeze(input.dims[d], NORMALISED_OVER)
    out = per_channel(op, input, list(map(given.get, _PARAMETERS)))
    shifts = given.get("bias") is not None
    return out if by_statistics else Labels(out.dims, (input.zero[0] and not shifts, out.zero[1], *out.zero[2:]))


@batch_norm.flops
def _(op: Op, out: Labels, input: Labels, *args: Any, **options: Any) -> list[Term]:
    given = _named(args, options)
    affine = given.get("weight") is not None
    if not given.get("training"):
        return [elements(input, 1 + affine)]
    return [term(4 + affine, *input.dims[:-1], size_of(input.dims[-1]))]


@batch_norm.rewrite
def _(op: Rewrite, input: fx.Node, *arguments: Argument, **options: Argument) -> Call | None:
    last = op.labels(input).dims[-1]
    if len(op.out.dims) < 3 or not op.changed(last):
        return None
    left = op.size(last)
    padded = op.insert(F.pad, (input, (0, size_of(last) - left)))
    whole = op.insert(F.batch_norm, (padded, *arguments), options)
    every = (slice(None),) * (len(op.out.dims) - 1)
    return Call((whole, (*every, slice(0, left))), target=operator.getitem)


@rule(F.instance_norm)
def instance_norm(op: Op, input: Labels, *args: Any, **options: Any) -> Labels:
    for dim in input.dims[2:]:
        op.freeze(dim, NORMALISED_OVER)
    return per_channel(op, input, list(map(_named(args, options).get, _PARAMETERS)))


@instance_norm.flops
def _(op: Op, out: Labels, input: Labels, *args: Any, **options: Any) -> list[Term]:
    return [elements(input, 4 if _named(args, options).get("weight") is None else 5)]

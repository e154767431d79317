"""Convolutions.

A grouped convolution needs equally many channels in each conv group. Either the same channels go in every conv group,
or whole conv groups go (a depthwise convolution is the case of one channel per group).
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, Labels, is_labelled, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.ops import Trait, names_with, traits
from fxprune.rules.linear import contract
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__: list[str] = []

# The number of conv groups is the seventh argument of all the functions, transposed or not.
_GROUPS = 6
_SETTINGS = ("input", "weight", "bias", "stride", "padding")


def _is_transposed(op: Op | Rewrite) -> bool:
    return Trait.TRANSPOSED in traits(op.node, op.module)


def _by_whole_groups(groups: int, in_channels: int, out_channels: int) -> bool:
    """Whether whole conv groups go and not the same channels of each: whichever there are more of."""
    return groups > 1 and groups >= min(in_channels, out_channels) // groups


def _passing(op: Op, x: Labels, spatial: int, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial dimensions that carry channels and are not mixed: the kernel has size 1 there.

    A convolution that mixes tokens has its channels in such a dimension.
    """
    given = vars(op.module) if op.module is not None else dict(zip(_SETTINGS, op.node.args, strict=False))
    given = {"stride": 1, "padding": 0, **given, **op.node.kwargs}
    settings = [
        value * spatial if len(value) == 1 else value for value in map(_as_tuple, map(given.get, _SETTINGS[3:]))
    ]
    lead = len(x.dims) - spatial
    return tuple(
        lead + k
        for k, step in enumerate(zip(kernel, *settings, strict=False))
        if step == (1, 1, 0) and is_labelled(x.dims[lead + k])
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _convolve(op: Op, x: Labels, weight: Labels, bias: Labels | None, groups: int) -> Labels:
    spatial, transposed = len(weight.dims) - 2, _is_transposed(op)
    axis = len(x.dims) - spatial - 1
    for dim in weight.dims[2:]:
        op.freeze(dim, "kernel position")
    passing = _passing(op, x, spatial, weight.shape[2:])
    for d, dim in enumerate(x.dims[axis + 1 :], start=axis + 1):
        if d not in passing:
            op.freeze(dim, "convolved over")
    zero = weight.zero[1 if transposed else 0]
    if groups == 1:
        contract(op, x, axis, weight, 0 if transposed else 1)
        out = weight.dims[1 if transposed else 0]
    else:
        op.sums_over(x, axis)
        whole = _by_whole_groups(groups, x.shape[axis], op.shape[axis])
        # What enters a conv group reaches no other: it need not be zero where conv groups go as wholes.
        if whole:
            zero = weight.zero[0] or x.zero[axis]
        elif not (weight.zero[0] and weight.zero[1]) and not x.zero[axis]:
            op.freeze(x.dims[axis], "contracted where it is not zero")
        out = _convolve_groups(op, x.dims[axis], weight.dims[0], weight.dims[1], groups, transposed)
    if bias is not None:
        out = op.unite(out, bias.dims[0])
        zero = zero and bias.zero[0]
    space = range(axis + 1, len(x.dims))
    dims = tuple(x.dims[d] if d in passing else op.shape[d] for d in space)
    return Labels(
        (*x.dims[:axis], out, *dims),
        (*(False,) * axis, zero, *(d in passing and x.zero[d] and bias is None for d in space)),
    )


def _convolve_groups(op: Op, x: Dim, rows: Dim, columns: Dim, groups: int, transposed: bool) -> Dim:
    """The output channels of a grouped convolution.

    Args:
        op: the convolution.
        x: the channels of the input.
        rows: the first dimension of the weight, which runs over all conv groups.
        columns: the second dimension of the weight, which runs over the channels of one conv group.
        groups: the number of conv groups.
        transposed: whether rows are inputs and columns outputs.
    """
    in_channels = size_of(x)
    out_channels = size_of(columns) * groups if transposed else size_of(rows)
    row_ids = _as_ids(op, rows).reshape(groups, -1)
    if _by_whole_groups(groups, in_channels, out_channels):
        op.freeze(columns, "belongs to whole conv groups")
        units = op.unite_axis(row_ids, 0)
        op.unite(x, np.repeat(units, in_channels // groups))
        return np.repeat(units, out_channels // groups)
    within = op.unite_axis(row_ids, 1)
    column_ids = _as_ids(op, columns)
    op.unite(x, np.tile(within if transposed else column_ids, groups))
    return np.tile(column_ids if transposed else within, groups)


def _as_ids(op: Op, dim: Dim) -> Ids:
    if not isinstance(dim, int):
        return dim
    ids = op.ids.fresh(dim)
    op.freeze(ids, "not a channel dimension")
    return ids


def _flops(op: Op, x: Labels, out: Labels, weight: Labels) -> list[Term]:
    # A complex convolution is three real ones.
    scale = 3 if op.value.is_complex() else 1
    spatial = len(weight.dims) - 2
    space = (x if _is_transposed(op) else out).dims[len(x.dims) - spatial :]
    kernel = weight.shape[2:]
    return [term(scale, *x.dims[: len(x.dims) - spatial - 1], *weight.dims[:2], *kernel, *space)]


def _groups_left(op: Rewrite, x: Argument, groups: int, spatial: int) -> int:
    """How many conv groups stay."""
    axis = len(op.out.dims) - spatial - 1
    summed = op.labels(x).dims[axis]
    in_channels, out_channels = size_of(summed), size_of(op.out.dims[axis])
    if _by_whole_groups(groups, in_channels, out_channels):
        return op.size(summed) // (in_channels // groups)
    return groups


def _module_weights(op: Op) -> tuple[Labels, Labels | None]:
    module: Any = op.module
    whole = _by_whole_groups(module.groups, module.in_channels, module.out_channels)
    return op.weight("weight", (0,) if whole else (0, 1)), op.find_weight("bias")


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_module(op: Op, input: Labels, output_size: object = None) -> Labels:
    module: Any = op.module
    return _convolve(op, input, *_module_weights(op), module.groups)


@conv_module.flops
def _(op: Op, out: Labels, input: Labels, output_size: object = None) -> list[Term]:
    return _flops(op, input, out, _module_weights(op)[0])


@conv_module.rewrite
def _(op: Rewrite, input: fx.Node, output_size: Argument = None) -> Call | None:
    module: Any = op.module
    original: Any = op.original
    module.groups = _groups_left(op, input, original.groups, module.weight.dim() - 2)
    module.in_channels, module.out_channels = module.weight.shape[1] * module.groups, module.weight.shape[0]
    if _is_transposed(op):
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    return None


@rule(*names_with(Trait.CONVOLUTION))
def conv(op: Op, input: Labels, weight: Labels, bias: Labels | None = None, *settings: Any, **options: Any) -> Labels:
    given = dict(enumerate(settings, start=3))
    return _convolve(op, input, weight, bias, options.get("groups", given.get(_GROUPS, 1)))


@conv.flops
def _(op: Op, out: Labels, input: Labels, weight: Labels, *settings: object, **options: object) -> list[Term]:
    return _flops(op, input, out, weight)


@conv.rewrite
def _(op: Rewrite, *args: Argument, **kwargs: Argument) -> Call | None:
    given: dict[int | str, Argument] = dict(enumerate(args))
    given.update(kwargs)
    key = "groups" if "groups" in kwargs else _GROUPS
    groups = op.number(given.get(key, 1))
    if groups == 1:
        return None
    x, weight = given.get(0, given.get("input")), given.get(1, given.get("weight"))
    left: Argument = _groups_left(op, x, groups, len(op.labels(weight).dims) - 2)
    if left == groups:
        return None
    if not op.is_static(given[key]):
        # One kernel for each sample of the batch: the number of conv groups grows with the batch.
        left = op.insert(operator.floordiv, (op.insert(operator.mul, (given[key], left)), groups))
    given[key] = left
    return Call(tuple(given[k] for k in range(len(args))), {name: given[name] for name in kwargs})


# The number of conv groups is the twelfth argument of a deformable convolution.
_DEFORM_GROUPS = 11


@rule("torchvision.deform_conv2d")
def deform_conv2d(
    op: Op, input: Labels, weight: Labels, offset: Labels, mask: Labels, bias: Labels, /, *settings: int
) -> Labels:
    """A convolution of values read at `offset`; each of some equal runs of channels has offsets of its own."""
    groups, runs = settings[6:8]
    for positions in (offset, mask):
        op.freeze(positions, "positions of a deformable convolution")
    channels = input.dims[1]
    if runs > 1 and not isinstance(channels, int):
        op.unite_axis(channels.reshape(runs, -1), 1)
    return _convolve(op, input, weight, bias, groups)


@deform_conv2d.flops
def _(op: Op, out: Labels, input: Labels, weight: Labels, *arguments: object) -> list[Term]:
    return _flops(op, input, out, weight)


@deform_conv2d.rewrite
def _(op: Rewrite, input: fx.Node, *arguments: Argument) -> Call | None:
    args = [input, *arguments]
    args[_DEFORM_GROUPS] = _groups_left(op, input, op.number(args[_DEFORM_GROUPS]), 2)
    return Call(tuple(args))

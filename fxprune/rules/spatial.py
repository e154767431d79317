"""Ops over space: pooling, interpolation, padding, unfolding, pixel shuffle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, LabelTree, is_labelled, size_of
from fxprune.channels.polynomial import Term
from fxprune.rules.op import BY_SIZE, Op, UnsupportedCall, axis, elements
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite
from fxprune.running.resizing import pooled_where_needed, resized_where_needed

__all__: list[str] = []


def _over_space(op: Op, x: Labels, spatial: int) -> LabelTree:
    """An op that mixes the last `spatial` dimensions; the others pass."""
    lead = len(x.dims) - spatial
    for dim in x.dims[lead:]:
        op.freeze(dim, "pooled over")

    def one(value: torch.Tensor) -> Labels:
        return Labels((*x.dims[:lead], *value.shape[lead:]), (*x.zero[:lead], *(False,) * spatial))

    value = op.value
    return one(value) if isinstance(value, torch.Tensor) else tuple(one(item) for item in value)


_POOLS = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
_POOL_MODULES = ("MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool", "AdaptiveMaxPool")


def _register_pools(spatial: int) -> None:
    functions = (f"{kind}{spatial}d" for kind in _POOLS)
    with_indices = (f"{kind}{spatial}d_with_indices" for kind in ("max_pool", "adaptive_max_pool"))

    @rule(*functions, *with_indices, *(getattr(nn, f"{kind}{spatial}d") for kind in _POOL_MODULES))
    def pool(op: Op, input: Labels, *arguments: object, **options: object) -> LabelTree:
        return _over_space(op, input, spatial)

    @pool.flops
    def _(op: Op, out: LabelTree, input: Labels, *arguments: object, **options: object) -> list[Term]:
        adaptive = isinstance(op.module, nn.AdaptiveAvgPool2d) or op.node.target is F.adaptive_avg_pool2d
        return [elements(input)] if adaptive else []

    @rule(f"max_unpool{spatial}d", getattr(nn, f"MaxUnpool{spatial}d"))
    def max_unpool(op: Op, input: Labels, indices: Labels, *arguments: object, **options: object) -> LabelTree:
        lead = len(input.dims) - spatial
        for left, right in zip(input.dims[:lead], indices.dims[:lead], strict=True):
            op.unite(left, right)
        return _over_space(op, input, spatial)


for _n in (1, 2, 3):
    _register_pools(_n)


@rule(F.interpolate, F.upsample)
def interpolate(op: Op, input: Labels, *arguments: object, **options: object) -> LabelTree:
    return _over_space(op, input, len(input.dims) - 2)


@rule(resized_where_needed)
def resize(op: Op, input: Labels, size: object, **options: object) -> LabelTree:
    """Where it is there for images of other sizes than the example's, it costs nothing."""
    return _over_space(op, input, len(input.dims) - 2)


@rule(pooled_where_needed)
def pool_where_needed(op: Op, input: Labels, size: object) -> LabelTree:
    return _over_space(op, input, 2)


@pool_where_needed.flops
def _(op: Op, out: Labels, input: Labels, size: object) -> list[Term]:
    return [] if out.shape == input.shape else [elements(input)]


@rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample_module(op: Op, input: Labels) -> LabelTree:
    return _over_space(op, input, len(input.dims) - 2)


def _resize_flops(out: Labels, mode: str) -> list[Term]:
    scale = {"nearest": 1, "bilinear": 4}.get(mode, 0) if len(out.dims) == 4 else 0
    return [elements(out, scale)] if scale else []


@resize.flops
def _(
    op: Op, out: Labels, input: Labels, size: object, mode: str = "nearest", antialias: bool = False, **options: object
) -> list[Term]:
    return _resize_flops(out, "" if antialias or out.shape == input.shape else mode)


@interpolate.flops
def _(
    op: Op,
    out: Labels,
    input: Labels,
    size: object = None,
    scale_factor: object = None,
    mode: str = "nearest",
    align_corners: object = None,
    recompute_scale_factor: object = None,
    antialias: bool = False,
) -> list[Term]:
    return _resize_flops(out, "" if antialias else mode)


@upsample_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    module: Any = op.module
    return _resize_flops(out, module.mode)


@rule("grid_sample")
def grid_sample(op: Op, input: Labels, grid: Labels, *arguments: object, **options: object) -> LabelTree:
    op.freeze(grid, "used as coordinates")
    return _over_space(op, input, len(input.dims) - 2)


@grid_sample.flops
def _(op: Op, out: Labels, *arguments: object, **options: object) -> list[Term]:
    return [elements(out, 4)]


def _pairs(pad: Any, rank: int) -> dict[int, tuple[int, int]]:
    """Dimension -> (front, back) of the argument `pad`, which starts with the last dimension.

    An amount in a tensor is not known, and counts as 1.
    """
    amounts = [1 if isinstance(n, (Labels, torch.Tensor)) else int(n) for n in pad]
    return {rank - 1 - k: (amounts[2 * k], amounts[2 * k + 1]) for k in range(len(amounts) // 2)}


def _padded_by_size(op: Op, pad: Any, rank: int) -> list[int]:
    """The dimensions that are padded by amounts that are not static."""
    given: Any = op.argument(1, "pad")
    if isinstance(given, fx.Node):
        return [] if op.is_static(given) else list(_pairs(pad, rank))
    return [rank - 1 - k // 2 for k, amount in enumerate(given) if not op.is_static(amount)]


@rule("pad")
def pad(op: Op, input: Labels, pad: Any, mode: str = "constant", value: object = None) -> Labels:
    if isinstance(pad, Labels):
        raise UnsupportedCall("padding by amounts that are a tensor")
    op.freeze(pad, "used as an amount of padding")
    dims: list[Dim] = list(input.dims)
    pairs = _pairs(pad, len(dims))
    moving = _padded_by_size(op, pad, len(dims))
    padded = {d for d, amounts in pairs.items() if any(amounts)} | {*moving}
    # Padding along the dimension itself adds no entries to its channels; padding along another dimension does.
    zero = [z and mode == "constant" and (not value or padded <= {d}) for d, z in enumerate(input.zero)]
    for d, (front, back) in pairs.items():
        dim = dims[d]
        if d in moving:
            op.freeze(dim, BY_SIZE)
            dims[d] = op.shape[d]
        elif isinstance(dim, int) or (front == 0 and back == 0):
            dims[d] = size_of(dim) + front + back if isinstance(dim, int) else dim
        elif mode == "constant" and front >= 0 and back >= 0:
            ends = op.ids.fresh(front), op.ids.fresh(back)
            if value:
                op.freeze(np.concatenate(ends), "padded with a value, but is no channel")
            dims[d] = np.concatenate([ends[0], dim, ends[1]])
        else:
            op.freeze(dim, "padded")
            dims[d] = size_of(dim) + front + back
    return Labels(tuple(dims), tuple(zero))


@pad.rewrite
def _(op: Rewrite, input: fx.Node, pad: Argument, mode: Argument = "constant", value: Argument = None) -> Call | None:
    out, x = op.out, op.labels(input)
    amounts: list[Argument] = list(pad) if isinstance(pad, (tuple, list)) else [int(n) for n in op.number(pad)]
    touched = False
    for d, (front, back) in _pairs([op.number(n) for n in amounts], len(x.dims)).items():
        dim = out.dims[d]
        if not isinstance(dim, int) and (front or back) and op.changed(dim):
            kept = op.kept(dim)
            k = 2 * (len(x.dims) - 1 - d)
            amounts[k], amounts[k + 1] = int(kept[:front].sum()), int(kept[len(kept) - back :].sum())
            touched = True
    return Call((input, amounts, mode, value)) if touched else None


@rule("unfold", nn.Unfold)
def unfold(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    """`F.unfold` (im2col) repeats each channel for every kernel position; `Tensor.unfold` adds a dimension."""
    if op.node.op == "call_method":
        dimension = axis(input, arguments[0] if arguments else options["dimension"])
        op.freeze(input.dims[dimension], "unfolded")
        return Labels(
            (*input.dims[:dimension], op.shape[dimension], *input.dims[dimension + 1 :], op.shape[-1]),
            (*input.zero[:dimension], False, *input.zero[dimension + 1 :], False),
        )
    channels = input.dims[1]
    repeats = op.shape[1] // size_of(channels)
    out: Dim = np.repeat(channels, repeats) if is_labelled(channels) else op.shape[1]
    return Labels((input.dims[0], out, op.shape[2]), (False, input.zero[1], False))


@rule("fold", nn.Fold)
def fold(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    channels, out = input.dims[1], op.shape[1]
    dim: Dim = out
    if not isinstance(channels, int):
        dim = op.unite_axis(channels.reshape(out, -1), 0)
    return Labels((input.dims[0], dim, *op.shape[2:]), (False, input.zero[1], *(False,) * (len(op.shape) - 2)))


def _pixel_shuffle(op: Op, x: Labels, factor: int) -> Labels:
    axis = len(x.dims) - 3
    channels = x.dims[axis]
    out: Dim = op.shape[axis]
    if not isinstance(channels, int):
        out = op.unite_axis(channels.reshape(-1, factor * factor), 0)
    return Labels((*x.dims[:axis], out, *op.shape[-2:]), (*x.zero[: axis + 1], False, False))


def _pixel_unshuffle(op: Op, x: Labels, factor: int) -> Labels:
    axis = len(x.dims) - 3
    channels = x.dims[axis]
    out: Dim = np.repeat(channels, factor * factor) if is_labelled(channels) else op.shape[axis]
    return Labels((*x.dims[:axis], out, *op.shape[-2:]), (*x.zero[: axis + 1], False, False))


@rule("pixel_shuffle")
def pixel_shuffle(op: Op, input: Labels, upscale_factor: int) -> Labels:
    return _pixel_shuffle(op, input, upscale_factor)


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op, input: Labels, downscale_factor: int) -> Labels:
    return _pixel_unshuffle(op, input, downscale_factor)


@rule(nn.PixelShuffle)
def pixel_shuffle_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _pixel_shuffle(op, input, module.upscale_factor)


@rule(nn.PixelUnshuffle)
def pixel_unshuffle_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return _pixel_unshuffle(op, input, module.downscale_factor)

"""New tensors with equal entries, or none yet: they become as wide as what they meet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels
from fxprune.rules.op import Op
from fxprune.rules.registry import rule
from fxprune.rules.reshape import flat
from fxprune.rules.rewrite import Call, Rewrite

__all__: list[str] = []

# Wider than this is no dimension of channels, but one of tokens or pixels. Not tuned.
_WIDEST = 1 << 16


def _sizes(
    arguments: tuple[Argument, ...], options: Mapping[str, Argument], value_follows: bool = False
) -> tuple[Argument, ...]:
    """The sizes among the arguments of a call; `value_follows` where the last argument is the value to fill in."""
    given = arguments[:1] if value_follows else arguments
    return flat(given) if given else flat((options["size"],))


def _filled(op: Op, sizes: tuple[Argument, ...], zero: bool = False) -> Labels:
    dims: list[Dim] = list(op.shape)
    for d, n in enumerate(sizes if len(sizes) == len(dims) else ()):
        if 1 < op.shape[d] <= _WIDEST and op.is_static(n):
            dims[d] = op.ids.fresh(op.shape[d])
    return Labels(tuple(dims), (zero,) * len(dims))


def _left(op: Rewrite, sizes: tuple[Argument, ...]) -> tuple[Argument, ...] | None:
    """The sizes for the channels that are left; None where they do not change."""
    dims = op.out.dims
    if not any(op.changed(dim) for dim in dims):
        return None
    return tuple(op.size(dim) if op.changed(dim) else n for n, dim in zip(sizes, dims, strict=True))


def _without_size(options: dict[str, Argument]) -> dict[str, Argument]:
    return {name: value for name, value in options.items() if name != "size"}


@rule("zeros")
def zeros(op: Op, *size: object, **options: object) -> Labels:
    return _filled(op, _sizes(op.node.args, op.node.kwargs), zero=True)


@rule("ones", "empty")
def ones(op: Op, *size: object, **options: object) -> Labels:
    return _filled(op, _sizes(op.node.args, op.node.kwargs))


@zeros.rewrite
@ones.rewrite
def _(op: Rewrite, *size: Argument, **options: Argument) -> Call | None:
    left = _left(op, _sizes(size, options))
    return None if left is None else Call((left,), _without_size(options))


@rule("full")
def full(op: Op, *arguments: object, **options: object) -> Labels:
    return _filled(op, _sizes(op.node.args, op.node.kwargs, value_follows=True))


@full.rewrite
def _(op: Rewrite, *arguments: Argument, **options: Argument) -> Call | None:
    left = _left(op, _sizes(arguments, options, value_follows=True))
    return None if left is None else Call((left, *arguments[1:]), _without_size(options))


@rule("new_zeros")
def new_zeros(op: Op, input: Labels, *size: object, **options: object) -> Labels:
    return _filled(op, _sizes(op.node.args[1:], op.node.kwargs), zero=True)


@rule("new_ones", "new_empty")
def new_ones(op: Op, input: Labels, *size: object, **options: object) -> Labels:
    return _filled(op, _sizes(op.node.args[1:], op.node.kwargs))


@new_zeros.rewrite
@new_ones.rewrite
def _(op: Rewrite, input: fx.Node, *size: Argument, **options: Argument) -> Call | None:
    left = _left(op, _sizes(size, options))
    return None if left is None else Call((input, left), _without_size(options))


@rule("new_full")
def new_full(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    return _filled(op, _sizes(op.node.args[1:], op.node.kwargs, value_follows=True))


@new_full.rewrite
def _(op: Rewrite, input: fx.Node, *arguments: Argument, **options: Argument) -> Call | None:
    left = _left(op, _sizes(arguments, options, value_follows=True))
    return None if left is None else Call((input, left, *arguments[1:]), _without_size(options))

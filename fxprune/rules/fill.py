"""New tensors, of equal entries or not filled yet: they are as wide as what they meet."""

from __future__ import annotations

from typing import Any

from fxprune.channels import Dim, Labels
from fxprune.rules.registry import Call, Op, Rewrite, rule
from fxprune.rules.reshape import flat

__all__: list[str] = []

# Wider than this is not a dimension of channels.
_WIDEST = 1 << 16


def _sizes(arguments: tuple[Any, ...], options: dict[str, Any], value_follows: bool = False) -> tuple[Any, ...]:
    """The sizes among a call's arguments; `value_follows` where the last argument is what is filled in."""
    given = arguments[:1] if value_follows else arguments
    return flat(given) if given else flat((options["size"],))


def _filled(op: Op, sizes: tuple[Any, ...], zero: bool = False) -> Labels:
    dims: list[Dim] = list(op.shape)
    for d, n in enumerate(sizes if len(sizes) == len(dims) else ()):
        if 1 < op.shape[d] <= _WIDEST and op.is_static(n):
            dims[d] = op.ids.fresh(op.shape[d])
    return Labels(tuple(dims), (zero,) * len(dims))


def _left(op: Rewrite, sizes: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The sizes for the channels that are left; None where they stay."""
    dims = op.out.dims
    if not any(op.changed(dim) for dim in dims):
        return None
    return tuple(op.size(dim) if op.changed(dim) else n for n, dim in zip(sizes, dims, strict=True))


def _without_size(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "size"}


@rule("zeros")
def zeros(op: Op, *size: Any, **options: Any) -> Labels:
    return _filled(op, _sizes(op.node.args, op.node.kwargs), zero=True)


@rule("ones", "empty")
def ones(op: Op, *size: Any, **options: Any) -> Labels:
    return _filled(op, _sizes(op.node.args, op.node.kwargs))


@zeros.rewrite
@ones.rewrite
def _(op: Rewrite, *size: Any, **options: Any) -> Call | None:
    left = _left(op, _sizes(size, options))
    return None if left is None else Call((left,), _without_size(options))


@rule("full")
def full(op: Op, *arguments: Any, **options: Any) -> Labels:
    return _filled(op, _sizes(op.node.args, op.node.kwargs, value_follows=True))


@full.rewrite
def _(op: Rewrite, *arguments: Any, **options: Any) -> Call | None:
    left = _left(op, _sizes(arguments, options, value_follows=True))
    return None if left is None else Call((left, *arguments[1:]), _without_size(options))


@rule("new_zeros")
def new_zeros(op: Op, input: Labels, *size: Any, **options: Any) -> Labels:
    return _filled(op, _sizes(op.node.args[1:], op.node.kwargs), zero=True)


@rule("new_ones", "new_empty")
def new_ones(op: Op, input: Labels, *size: Any, **options: Any) -> Labels:
    return _filled(op, _sizes(op.node.args[1:], op.node.kwargs))


@new_zeros.rewrite
@new_ones.rewrite
def _(op: Rewrite, input: Any, *size: Any, **options: Any) -> Call | None:
    left = _left(op, _sizes(size, options))
    return None if left is None else Call((input, left), _without_size(options))


@rule("new_full")
def new_full(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    return _filled(op, _sizes(op.node.args[1:], op.node.kwargs, value_follows=True))


@new_full.rewrite
def _(op: Rewrite, input: Any, *arguments: Any, **options: Any) -> Call | None:
    left = _left(op, _sizes(arguments, options, value_follows=True))
    return None if left is None else Call((input, left, *arguments[1:]), _without_size(options))

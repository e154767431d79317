"""Fourier transforms and complex numbers: a dimension that is transformed stays whole, the others pass."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.channels import Labels
from fxprune.rules.elementwise import broadcast
from fxprune.rules.op import Op
from fxprune.rules.registry import rule

__all__: list[str] = []

_ONE = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
_TWO = ("fft2", "ifft2", "rfft2", "irfft2")
_MANY = ("fftn", "ifftn", "rfftn", "irfftn", "fftshift", "ifftshift")


def _transformed(op: Op, x: Labels, along: Any) -> Labels:
    rank = len(x.dims)
    dims = range(rank) if along is None else along if isinstance(along, (tuple, list)) else (along,)
    mixed = {d % rank for d in dims}
    for d in mixed:
        op.freeze(x.dims[d], "Fourier transform")
    kept = tuple(op.shape[d] if d in mixed else dim for d, dim in enumerate(x.dims))
    return Labels(kept, tuple(zero and d not in mixed for d, zero in enumerate(x.zero)))


def _functions(names: tuple[str, ...]) -> list[Any]:
    return [getattr(torch.fft, name) for name in names]


@rule(*_functions(_ONE))
def transform(op: Op, input: Labels, n: object = None, dim: int = -1, norm: object = None, **options: object) -> Labels:
    return _transformed(op, input, dim)


@rule(*_functions(_TWO))
def transform_two(op: Op, input: Labels, s: object = None, dim: Any = (-2, -1), norm: object = None) -> Labels:
    return _transformed(op, input, dim)


@rule(*_functions(_MANY[:4]))
def transform_many(op: Op, input: Labels, s: Any = None, dim: Any = None, norm: object = None) -> Labels:
    if dim is None and s is not None:
        dim = tuple(range(-len(s), 0))
    return _transformed(op, input, dim)


@rule(*_functions(_MANY[4:]))
def shift(op: Op, input: Labels, dim: Any = None) -> Labels:
    return _transformed(op, input, dim)


@rule("view_as_complex")
def view_as_complex(op: Op, input: Labels) -> Labels:
    op.freeze(input.dims[-1], "real and imaginary parts")
    return input.take(range(len(input.dims) - 1))


@rule("view_as_real")
def view_as_real(op: Op, input: Labels) -> Labels:
    return Labels((*input.dims, 2), (*input.zero, False))


@rule("complex", torch.polar)
def complex_of(op: Op, input: Labels, other: Labels) -> Labels:
    """A number of each pair of elements of two tensors."""
    dims = broadcast(op, [input, other])
    if input.shape != other.shape:
        return Labels(dims, (False,) * len(dims))
    return Labels(dims, tuple(a and b for a, b in zip(input.zero, other.zero, strict=True)))


@rule("angle", "conj", "conj_physical", "resolve_conj", "imag")
def part(op: Op, input: Labels) -> Labels:
    return input

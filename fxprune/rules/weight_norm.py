"""Norms of weights: weight norm and spectral norm."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.nn.utils.parametrizations import _SpectralNorm

from fxprune.channels import Labels, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.rules.batch_norm import NORMALISED_OVER
from fxprune.rules.op import Op, UnsupportedCall
from fxprune.rules.registry import rule
from fxprune.tracing.traced_module import DivideBySpectralNorm

__all__: list[str] = []


@rule("_weight_norm")
def weight_norm(op: Op, v: Labels, g: Labels, dim: int = 0) -> Labels:
    """Each slice of `v` along `dim`, or all of it if there is one length, is divided by its norm.

    To the norm removed entries add nothing.
    """
    out = v.replace(dim, op.unite(v.dims[dim], g.dims[dim]), zero=g.zero[dim] or v.zero[dim]) if g.dims else v
    for d in range(len(v.dims)):
        if not g.dims or d != dim % len(v.dims):
            op.sums_over(v, d)
            if not v.zero[d]:
                op.freeze(v.dims[d], NORMALISED_OVER)
    return out


def _over_spectral_norm(op: Op, weight: Labels, u: Labels, v: Labels, dim: int) -> Labels:
    """A weight divided by `u @ matrix @ v`, to which removed entries add nothing.

    The matrix is the weight with `dim` as rows and all other dimensions as columns.
    """
    if len(weight.dims) < 2:
        raise UnsupportedCall("spectral norm of a weight with fewer than two dimensions")
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


@divide_by_spectral_norm.flops
def _(op: Op, out: Labels, weight: Labels, u: Labels, v: Labels) -> list[Term]:
    module: Any = op.module
    return _flops_of_spectral_norm(out, module.hook.dim)


def _flops_of_spectral_norm(out: Labels, dim: int) -> list[Term]:
    """The matrix times `v`, and `u` times the result; the iterations of training do not count."""
    return [term(*out.dims), term(out.dims[dim])]


@rule(_SpectralNorm)
def spectral_norm(op: Op, weight: Labels) -> Labels:
    module: Any = op.module
    return _over_spectral_norm(op, weight, op.weight("_u"), op.weight("_v"), module.dim)


@spectral_norm.flops
def _(op: Op, out: Labels, weight: Labels) -> list[Term]:
    module: Any = op.module
    return _flops_of_spectral_norm(out, module.dim)

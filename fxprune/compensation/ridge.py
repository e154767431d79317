"""Ridge regression of a layer's residuals on its inputs; held-out rows choose the damping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Rows", "Solution", "solve"]

# From this width on x^T x is computed in so many parts: 2/3 of the time at a width of 576 or 1,152. Not tuned.
_WIDE, _PARTS = 256, 4


class Rows(NamedTuple):
    """Inputs of a layer, and what its outputs lack there.

    Attributes:
        inputs: (rows, conv groups, inputs of a conv group).
        residuals: (rows, conv groups, outputs of a conv group).
    """

    inputs: Tensor
    residuals: Tensor


class Solution(NamedTuple):
    """What is to be added to a layer.

    Attributes:
        damping: the strength that was chosen.
        change: of the weight (outputs, inputs of a conv group), float64.
        intercept: of the outputs (outputs,), float64.
    """

    damping: float
    change: Tensor
    intercept: Tensor


def solve(fit: Rows, held: Rows, damping: Sequence[float], *, centre: bool) -> Solution | None:
    """Ridge regression per conv group: the change D that minimises ``|D x - residual|^2 + damping |D|^2``.

    Args:
        fit: rows to fit to.
        held: rows to choose the damping by; if there are none, the first damping is taken.
        damping: strengths to choose from, relative to the mean square of the inputs.
        centre: whether there may be an intercept; else it is zero.

    Returns:
        The best solution; None where the held-out rows are better off without any.
    """
    inputs, residuals = fit

    def mean(rows: Tensor) -> Tensor:
        return rows.double().mean(0) if centre else torch.zeros_like(rows[0], dtype=torch.float64)

    mean_input, mean_residual = mean(inputs), mean(residuals)
    x = (inputs - mean_input.to(inputs)).transpose(0, 1)
    y = (residuals - mean_residual.to(residuals)).transpose(0, 1)
    # Of fewer rows than inputs the products of rows are fewer: x^T (x x^T + damping)^-1 y is the same.
    few = x.shape[1] < x.shape[2]
    gram, right = (_gram(x.transpose(1, 2)), y.double()) if few else (_gram(x), _product(x, y))
    level = (gram.diagonal(dim1=1, dim2=2).sum(1) / x.shape[2]).clamp_min(1e-30)
    eye = torch.eye(gram.shape[1], dtype=torch.float64, device=inputs.device)
    best, least = None, float(held.residuals.double().square().sum())
    for strength in damping:
        factor, failed = torch.linalg.cholesky_ex(gram + (strength * level)[:, None, None] * eye)
        if bool(failed.any()):
            continue
        solved = torch.cholesky_solve(right, factor)
        weights = torch.bmm(x.double().transpose(1, 2), solved) if few else solved
        intercept = mean_residual - torch.einsum("gi,gio->go", mean_input, weights)
        solution = Solution(strength, weights.transpose(1, 2).flatten(0, 1), intercept.reshape(-1))
        if not len(held.inputs):
            return solution
        made = torch.bmm(held.inputs.transpose(0, 1), weights.to(inputs)).transpose(0, 1)
        error = float((held.residuals - made - intercept.to(residuals)).double().square().sum())
        if error < least:
            best, least = solution, error
    return best


def _gram(x: Tensor) -> Tensor:
    """x^T x per conv group, as `_product`; it is symmetric, and of wide layers a part is not computed twice."""
    width = x.shape[2]
    if width < _WIDE:
        return _product(x, x)
    gram = x.new_zeros(x.shape[0], width, width, dtype=torch.float64)
    for k in range(_PARTS):
        start, stop = width * k // _PARTS, width * (k + 1) // _PARTS
        gram[:, start:stop, start:] = _product(x[:, :, start:stop], x[:, :, start:])
        gram[:, start:, start:stop] = gram[:, start:stop, start:].transpose(1, 2)
    return gram


def _product(x: Tensor, y: Tensor, block: int = 1024) -> Tensor:
    """x^T y per conv group, in float64 sums of blocks."""
    total = x.new_zeros(x.shape[0], x.shape[2], y.shape[2], dtype=torch.float64)
    for start in range(0, x.shape[1], block):
        total += torch.bmm(x[:, start : start + block].transpose(1, 2), y[:, start : start + block]).double()
    return total

"""Ridge regression of residuals on a layer's inputs, whose damping a held-out part chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["solve"]


def solve(
    a: Tensor, r: Tensor, a_held: Tensor, r_held: Tensor, centre: bool, damping: Sequence[float]
) -> tuple[float, Tensor, Tensor] | None:
    """Ridge regression of residuals on inputs, per conv group.

    Args:
        a: inputs (rows, conv groups, inputs of a conv group).
        r: residuals (rows, conv groups, outputs of a conv group).

    Returns:
        The damping chosen, the change of the weight (outputs, inputs of a conv group) and of the bias (outputs,); None
        where the held-out rows are better off without.
    """
    width = a.shape[2]

    def mean(rows: Tensor) -> Tensor:
        return rows.double().mean(0) if centre else torch.zeros_like(rows[0], dtype=torch.float64)

    mean_a, mean_r = mean(a), mean(r)
    x, y = (a - mean_a.to(a)).transpose(0, 1), (r - mean_r.to(r)).transpose(0, 1)
    gram, cross = _product(x, x), _product(x, y)
    level = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
    eye = torch.eye(width, dtype=torch.float64, device=a.device)
    best, least = None, float(r_held.double().square().sum()) if len(r_held) else float("inf")
    x_held = a_held.transpose(0, 1)
    for strength in damping:
        factor, failed = torch.linalg.cholesky_ex(gram + (strength * level)[:, None, None] * eye)
        if bool(failed.any()):
            continue
        solution = torch.cholesky_solve(cross, factor)
        intercept = mean_r - torch.einsum("gi,gio->go", mean_a, solution)
        if not len(r_held):
            return strength, solution.transpose(1, 2).reshape(-1, width), intercept.reshape(-1)
        left = r_held - torch.bmm(x_held, solution.to(a)).transpose(0, 1) - intercept.to(r)
        error = float(left.double().square().sum())
        if error < least:
            best, least = (strength, solution.transpose(1, 2).reshape(-1, width), intercept.reshape(-1)), error
    return best


def _product(x: Tensor, y: Tensor, block: int = 1024) -> Tensor:
    """x^T y per conv group, in float64 sums of blocks."""
    total = x.new_zeros(x.shape[0], x.shape[2], y.shape[2], dtype=torch.float64)
    for start in range(0, x.shape[1], block):
        total += torch.bmm(x[:, start : start + block].transpose(1, 2), y[:, start : start + block]).double()
    return total

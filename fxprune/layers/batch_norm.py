"""BatchNorm layers that remember the statistics of what they were trained on."""

from __future__ import annotations

from typing import Protocol, TypeGuard

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BatchNorm", "has_statistics", "is_batch_norm"]


class BatchNorm(Protocol):
    """A BatchNorm that has statistics.

    Attributes:
        running_mean, running_var: of the inputs it was trained on (channels,).
        weight, bias: of its affine transform (channels,); None where it has none.
        eps: what is added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def has_statistics(module: object) -> TypeGuard[BatchNorm]:
    """Whether a module is a BatchNorm with a running mean and variance."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


def is_batch_norm(module: object) -> bool:
    """Whether a module is a BatchNorm, of whatever dimensions."""
    return isinstance(module, _BatchNorm)

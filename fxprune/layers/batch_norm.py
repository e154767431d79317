"""BatchNorm layers that remember the statistics of what they were trained on."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["has_statistics"]


def has_statistics(module: nn.Module | None) -> bool:
    """Whether a module is a BatchNorm with a running mean and variance."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None

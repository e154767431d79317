"""A model in eval for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_eval"]


@contextmanager
def in_eval(*models: nn.Module) -> Iterator[None]:
    """Within it, models are in eval; afterwards each of their modules is in the mode that it was in."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training

"""A model in eval for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["in_eval"]


@contextmanager
def in_eval(*models: nn.Module) -> Iterator[None]:
    """Within it, models are in eval; afterwards modes and buffers are as they were, such as a counter of calls."""
    modes = {module: module.training for model in models for module in model.modules()}
    with torch.no_grad():
        buffers = [(buffer, buffer.clone()) for model in models for buffer in model.buffers() if not buffer.is_meta]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)

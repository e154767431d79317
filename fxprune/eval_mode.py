"""A model in eval for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["in_eval"]


@contextmanager
def in_eval(*models: nn.Module, changing: Iterable[Tensor] = ()) -> Iterator[None]:
    """Within it, models are in eval; afterwards modes are as they were, and buffers, such as a counter of calls.

    So are parameters that got other `.data`. Buffers among `changing` are changed on purpose, and stay so.
    """
    modules = {module: module.training for model in models for module in model.modules()}
    owners = [(module._buffers, dict(module._buffers)) for module in modules]
    left = {id(buffer) for buffer in changing}
    # A tensor of inference mode does not count its changes.
    values = [
        (buffer, buffer.detach().clone(), None if buffer.is_inference() else buffer._version)
        for _, buffers in owners
        for buffer in buffers.values()
        if buffer is not None and id(buffer) not in left
    ]
    parameters = [(parameter, parameter.data) for model in models for parameter in model.parameters()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modules.items():
            module.training = training
        for buffers, before in owners:
            buffers.update(before)
        for parameter, data in parameters:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        with torch.no_grad():
            for buffer, value, version in values:
                if version is None or buffer._version != version:
                    buffer.copy_(value)

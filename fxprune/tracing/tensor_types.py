"""`torch.FloatTensor` and its like: types and constructors that are older than dtypes and `torch.empty`.

torch shows the constructors to no tracer, and no tensor on the meta device is of such a type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune.tracing.recording import Recorder

__all__ = ["TENSOR_TYPES", "TensorType"]

TENSOR_TYPES = tuple(
    f"{name}Tensor"
    for name in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    if hasattr(torch, f"{name}Tensor")
)


class TensorType:
    """Stands for `torch.FloatTensor` or one of its kind."""

    def __init__(self, kind: Any, recorder: Recorder, mine: Callable[[], bool]) -> None:
        self.kind, self.recorder, self.mine = kind, recorder, mine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A tensor without values of that size, or one of these entries."""
        first = args[0] if args else 0
        if kwargs or not self.mine():
            return self.kind(*args, **kwargs)
        if isinstance(first, Tensor):
            return first.detach()
        if isinstance(first, (int, torch.Size)):
            return torch.empty(*(args or (0,)), dtype=self.kind.dtype)
        return torch.tensor(first, dtype=self.kind.dtype)

    def __instancecheck__(self, value: Any) -> bool:
        """Whether the real tensor is of that type."""
        if not isinstance(value, Tensor) or not self.mine():
            return isinstance(value, self.kind)
        return value.dtype == self.kind.dtype and self.recorder.device.type == "cpu"

    def __getattr__(self, name: str) -> Any:
        """All else is the type's."""
        return getattr(self.kind, name)

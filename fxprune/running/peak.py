"""The most memory that activations take at a time, counted while a model runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.running import trees
from fxprune.running.eval_mode import in_eval

__all__ = ["peak_activations"]


def peak_activations(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The most bytes of tensors that operators have made and that exist at the same time in one call in eval mode.

    What an operator allocates for itself does not count, nor do the weights and the arguments.
    """
    with torch.no_grad(), in_eval(model), _Alive() as alive:
        model(*args, **kwargs)
        peak: int = alive.peak
    return peak


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of the tensors that operators have made and that still exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(tensor) for tensor in trees.tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in trees.tensors(result):
            if _storage(tensor) not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget(size)).atexit = False

    def _forget(self, size: int) -> Callable[[], None]:
        def forget() -> None:
            self.now -= size

        return forget


def _storage(tensor: Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number

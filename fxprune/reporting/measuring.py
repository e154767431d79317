"""What takes a run of the models: the certificate and the peak memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.provenance import pruning_notes
from fxprune.reporting.facts import Certificate, Memory
from fxprune.running import trees
from fxprune.running.copies import named_tensors
from fxprune.running.eval_mode import in_eval
from fxprune.tracing.notes import call_of
from fxprune.verification import verify, verify_structure

__all__ = ["certify", "memory_of"]


def certify(original: nn.Module, pruned: nn.Module, *, random_weights: bool = False) -> Certificate:
    """Compare a pruned model with its zero-masked original.

    Where the outputs differ, training may have changed the weights, or the original has others: then the structure is
    compared, with slices of the original's weights in place of the pruned model's own.

    Args:
        original: the model before pruning, with the weights that it had or, for the structure, any others.
        pruned: a pruned model.
        random_weights: whether the original was built again, with random weights: only the structure is compared.

    Raises:
        FxpruneError: as `fxprune.verify`.
    """
    if random_weights:
        return Certificate(verify_structure(original, pruned), "structure", "rebuilt")
    compensated = bool(pruning_notes(pruned).compensated)
    found = Certificate(verify(original, pruned), "structure" if compensated else "outputs")
    if found.holds or compensated:
        return found
    of_structure = Certificate(verify_structure(original, pruned), "structure")
    return of_structure if of_structure.holds else found


def memory_of(model: nn.Module, example_inputs: Any = None, *, run: bool = True) -> Memory:
    """Bytes that a model takes: for its weights, and at the peak of one forward pass in eval mode.

    The peak counts all tensors that exist at the same time, as torch's operators return them, but not what an operator
    allocates for itself.
    """
    weights = {id(tensor): tensor.nbytes for tensor in named_tensors(model).values()}
    own = sum(weights.values())
    if not run:
        return Memory(own, None)
    args, kwargs = call_of(model, example_inputs)
    with torch.no_grad(), in_eval(model), _Alive() as alive:
        model(*args, **kwargs)
    return Memory(own, own + alive.peak)


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

"""Random numbers: the caller's generators are preserved, and a run draws from seeds of its own."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NotesDraws", "derive_seed", "preserve_rng_state", "random_state", "reseed"]


class NotesDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator inside it draws random numbers, which works on the meta device too.

    Attributes:
        drawn: whether one did.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drawn = self.drawn or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Afterwards the global generators of torch, numpy and Python are in the state that they had before."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def random_state() -> object:
    """The state of the random numbers that torch does not know: those of numpy and Python."""
    return random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


def reseed(seed: int, *position: int) -> None:
    """Seed the global generators of torch, numpy and Python for one position of a run."""
    number = derive_seed(seed, *position)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        # torch.manual_seed also notes where it was called from, for devices that are never used.
        torch.default_generator.manual_seed(number)


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers; other numbers give another seed."""
    # SeedSequence gives the same for [1] and [1, 0].
    entropy = [len(numbers), *(number & 0xFFFFFFFFFFFFFFFF for number in numbers)]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1

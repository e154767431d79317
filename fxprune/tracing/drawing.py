"""Helpers of a model's code that draw random numbers from NumPy, as SpecAugment's masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from fxprune.running.randomness import preserve_rng_state, random_state

__all__ = ["array_drawn", "may_draw"]


@functools.lru_cache(maxsize=10_000)
def may_draw(function: FunctionType) -> bool:
    """Whether the code of a function names `np.random`."""
    names = set(_names(function.__code__))
    return "random" in names and any(function.__globals__.get(name) is np for name in names)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def array_drawn(call: Callable[[], Any]) -> np.ndarray | None:
    """What a call gives if that is an array of random numbers, of a size that these have no say in; else None."""
    with preserve_rng_state():
        before = random_state()
        arrays = [call() for _ in range(2)]
        drew = random_state() != before
    first, second = arrays
    kinds = {(type(array), getattr(array, "shape", None), getattr(array, "dtype", None)) for array in arrays}
    return first if drew and type(second) is np.ndarray and len(kinds) == 1 else None

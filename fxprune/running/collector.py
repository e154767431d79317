"""Python's collector of cyclic garbage, held back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collection"]


@contextmanager
def no_collection() -> Iterator[None]:
    """Within it, cyclic garbage stays.

    Where many small objects are made that live, as the nodes of a graph do, looking for garbage among all objects of
    the process takes up to a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

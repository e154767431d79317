"""Freed main memory stays with the process, so that the next tensor of that size does not have to be cleared.

The C library of most Linux systems (glibc) gives every block above 32 MiB back to the system when it is freed, and the
system clears each page when it hands it out again: up to a third of the time that a pass over 48 photographs takes on a
CPU (tests/benchmarks/freed_memory.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

__all__ = ["keep_freed_memory"]

# Numbers of malloc.h: how much at the end of the heap is given back, from which size on a block is mapped on its own,
# and how many such blocks there may be.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
# glibc starts with 128 KiB for both thresholds and raises them, as blocks are freed, up to these.
_USUAL = ((_TRIM_THRESHOLD, 64 << 20), (_MMAP_THRESHOLD, 32 << 20), (_MMAP_MAX, 1 << 16))
# A user who sets one of these has decided how memory is to be kept.
_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")

_lock = Lock()
_inside = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within it, freed memory stays with the process; at the end the system gets it back. Also a decorator.

    It does nothing with other C libraries, or where the environment sets up glibc's `malloc`.
    """
    global _inside
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _inside += 1
    try:
        with _lock:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for parameter, value in _USUAL:
                    libc.mallopt(parameter, value)
                libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and nobody has set it up."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

"""Main memory that is freed stays with the process for a while, so that what is as large need not be cleared anew.

The C library of most Linux systems (glibc) gives every block above 32 MiB back to the system when it is freed, and the
system clears each page again when the next one is asked for: up to a third of the time that a pass over 48 photographs
takes on a CPU (tests/benchmarks/freed_memory.py).
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

__all__ = ["freed_memory_kept"]

# Of malloc.h: what is given back at the top, from which size on blocks are on their own, and how many of these.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
# glibc starts with 128 KiB and 128 KiB and raises both, as blocks are freed, to these.
_USUAL = ((_TRIM_THRESHOLD, 64 << 20), (_MMAP_THRESHOLD, 32 << 20), (_MMAP_MAX, 1 << 16))
# Whoever sets one of these knows what he wants.
_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")

_lock = Lock()
_inside = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed inside, and give it back to the system in the end; also a decorator.

    It does nothing with other C libraries and where the environment sets glibc's `malloc`.
    """
    global _inside
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for parameter, value in _USUAL:
                    libc.mallopt(parameter, value)
                libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, if it is glibc and nobody has set it up."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SETTINGS):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

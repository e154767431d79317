"""Main memory that is freed stays with the process inside, and goes back to the system in the end."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from fxprune import allocator
from fxprune.allocator import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

_SIZE = 1 << 26
_PAGE = resource.getpagesize()


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Nothing in the environment sets malloc."""
    for name in allocator._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    allocator._glibc.cache_clear()
    yield
    allocator._glibc.cache_clear()


def cleared_pages(times=8):
    """How often the system clears the pages of a large tensor that is made and freed so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(_SIZE, dtype=torch.uint8)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * _PAGE / _SIZE


def resident():
    """Bytes of main memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def test_freed_memory_is_used_again_inside_and_given_back_after():
    before = resident()
    with freed_memory_kept():
        # Several free places may be as large.
        assert cleared_pages() < 4
        assert resident() > before + _SIZE / 2
    assert resident() < before + _SIZE / 2


def test_only_the_outermost_gives_back():
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        assert cleared_pages() < 4


def test_it_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        raise ZeroDivisionError
    assert allocator._inside == 0


def test_who_sets_malloc_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    allocator._glibc.cache_clear()
    assert allocator._glibc() is None
    with freed_memory_kept():
        assert allocator._inside == 0

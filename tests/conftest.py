"""The same on each machine: one thread, and the widths of one kind of CPU.

Several workers would compete for the cores, rounding depends on the number of threads, `round_to="auto"` on the CPU.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# For processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"


# What is loaded by the time that the tests run stays: Python need not look for garbage in it, again and again.
gc.disable()


def pytest_collection_finish() -> None:
    """Only what tests make is looked at."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Also after a test that has changed it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")


# The doctests are those of fxprune. To look for some in helpers and scripts would import them a second time.
HERE = Path(__file__).parent
collect_ignore = [str(path) for path in HERE.rglob("*.py") if not path.name.startswith(("test_", "conftest"))]

"""One thread: several workers would compete for the cores, and rounding depends on the number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# For processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Also after a test that has changed it."""
    torch.set_num_threads(1)


# The doctests are those of fxprune. To look for some in helpers and scripts would import them a second time.
HERE = Path(__file__).parent
collect_ignore = [str(path) for path in HERE.rglob("*.py") if not path.name.startswith(("test_", "conftest"))]

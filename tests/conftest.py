"""One thread: several workers would compete for the cores, and rounding depends on the number of threads."""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(1)
# For processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Also after a test that has changed it."""
    torch.set_num_threads(1)


# Scripts without doctests; those for GPUs and other libraries cannot even be imported everywhere.
collect_ignore_glob = ["benchmarks/*"]

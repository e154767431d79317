"""One thread a worker: several workers with as many threads as cores each would wait for each other."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    # What tests start in processes of their own.
    os.environ["OMP_NUM_THREADS"] = "1"

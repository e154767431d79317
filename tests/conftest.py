"""One thread: workers of many would wait for each other, and sums depend on how many there are."""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
# What tests start in processes of their own.
os.environ["OMP_NUM_THREADS"] = "1"

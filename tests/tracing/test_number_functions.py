"""Functions of numbers, applied to sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from invariant import net
from same_model import assert_same
from torch import Tensor, nn
from torch.nn import functional

from fxprune.tracing.tracer import trace


def rounded_by_numpy(self: Any, x: Tensor) -> Tensor:
    missing = int(np.ceil(x.shape[-1] / 8) * 8) - x.shape[-1]
    half = np.floor(x.shape[-1] / 2).astype(int)
    padded = functional.pad(x, (0, missing))[..., : half + np.trunc(x.shape[1] / 2).astype("int64")]
    chunks = x.chunk(int(np.ceil(x.shape[0] / 128)), 0)
    return padded * np.rint(x.shape[1] * 0.4) + sum(chunk.mean() for chunk in chunks)


def test_sizes_that_numpy_rounds_are_rounded_at_run_time() -> None:
    model = net(rounded_by_numpy)
    assert_same(model, trace(model, torch.randn(2, 3, 13)), torch.randn(4, 7, 18))


def test_numbers_of_numpy_are_numbers() -> None:
    model = net(lambda self, x: self.a(x) * np.float64(0.5) + np.float32(2), a=nn.Linear(3, 4))
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(5, 3))

"""Widths that a device computes without waste."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.planning.alignment import preferred_multiple


@pytest.mark.parametrize(
    ("capability", "dtype", "multiple"),
    [
        ("AVX512", torch.float32, 16),
        ("AVX512", torch.float64, 8),
        ("AVX2", torch.float32, 8),
        ("AVX2", torch.bfloat16, 16),
        ("DEFAULT", torch.float32, 4),
    ],
)
def test_channels_fill_a_vector_register_of_the_cpu(
    capability: str, dtype: torch.dtype, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert preferred_multiple(nn.Linear(2, 2, dtype=dtype)) == multiple


def test_elsewhere_rows_are_aligned_to_16_bytes() -> None:
    assert preferred_multiple(nn.Linear(2, 2, device="meta")) == 4
    assert preferred_multiple(nn.Linear(2, 2, device="meta", dtype=torch.complex128)) == 1


def test_a_model_without_floating_point_weights_has_no_preference() -> None:
    assert preferred_multiple(nn.ReLU()) == 1

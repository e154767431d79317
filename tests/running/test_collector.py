"""Garbage collection is held back, and comes back."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import fxprune
from fxprune.running.collector import no_collection


def test_collection_comes_back_after_an_error() -> None:
    def fail() -> None:
        with no_collection():
            assert not gc.isenabled()
            raise ValueError("oh")

    with pytest.raises(ValueError, match="oh"):
        fail()
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_trace_holds_it_back() -> None:
    seen: list[bool] = []

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(gc.isenabled())
            return x + 1

    fxprune.trace(Looks(), torch.zeros(1, 2))
    assert seen
    assert not any(seen)
    assert gc.isenabled()

"""A model one of whose ops waits, and the clock that it waits by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from invariant import image, randomise
from slow import CLOCK, TwoBranches
from torch import nn

import fxprune


@pytest.fixture(scope="module")
def clock() -> Iterator[None]:
    """Time is what the clock says."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("measure", "channels"):
            patch.setattr(f"fxprune.latency.{module}.time", CLOCK)
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomise(TwoBranches()).float()


@pytest.fixture(scope="module")
def graph(model: nn.Module, clock: None) -> fxprune.ChannelGraph:
    return fxprune.time_channels(fxprune.analyze(fxprune.trace(model, image(batch=1, size=8))), repeats=5)

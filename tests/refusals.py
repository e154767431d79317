"""Checks that something is refused with a message, and that the model is left unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import FxpruneError

__all__ = ["assert_refused", "small"]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))


def assert_refused(model: nn.Module, act: Callable[[], Any], message: str) -> None:
    """`act` raises an FxpruneError that reads so, and leaves the model as it was."""
    state, training = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with pytest.raises(FxpruneError, match=message):
        act()
    assert [module.training for module in model.modules()] == training
    for name, tensor in model.state_dict().items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(state[name]))

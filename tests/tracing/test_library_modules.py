"""Modules that become one node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxprune.tracing.library_modules import has_forward_hooks, is_library_module
from fxprune.tracing.traced_module import ByMode


class Own(nn.Linear):
    """A layer of the user's, of which only the class is torch's."""


def with_another_forward() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda x: x.abs()  # type: ignore[method-assign]
    return module


ONE_NODE = [nn.Linear(2, 2), nn.BatchNorm2d(2), nn.LSTM(2, 2), nn.ReLU(), nn.Dropout(), ByMode(1, 2)]
TRACED = [
    nn.Sequential(nn.ReLU()), nn.Module(), nn.MultiheadAttention(2, 1), nn.TransformerEncoderLayer(2, 1),
    nn.ZeroPad2d(1), nn.MSELoss(), Own(2, 2), with_another_forward(), parametrizations.weight_norm(nn.Linear(2, 2)),
    nn.utils.spectral_norm(nn.Linear(2, 2)), torch.nn.utils.prune.l1_unstructured(nn.Linear(2, 2), "weight", 1),
]  # fmt: skip


def name(module: Any) -> str:
    return type(module).__name__


@pytest.mark.parametrize("module", ONE_NODE, ids=name)
def test_modules_of_torch_are_one_node(module: nn.Module) -> None:
    assert is_library_module(module)


@pytest.mark.parametrize("module", TRACED, ids=name)
def test_modules_made_of_others_and_those_that_compute_their_weights_are_traced(module: nn.Module) -> None:
    assert not is_library_module(module)


def test_hooks_before_and_after_forward_are_seen() -> None:
    def hook(*_: Any) -> Tensor | None:
        return None

    before, after = nn.ReLU(), nn.ReLU()
    before.register_forward_pre_hook(hook)
    after.register_forward_hook(hook)
    assert [has_forward_hooks(module) for module in (nn.ReLU(), before, after)] == [False, True, True]

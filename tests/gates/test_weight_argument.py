"""Layers that can be called with another weight, and without one do what they did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.gates.weight_argument import WITH_WEIGHT_ARGUMENT

LAYERS: dict[str, tuple[Any, Tensor, str]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), torch.randn(2, 4, 9), "weight"),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), torch.randn(2, 4, 5, 5), "weight"),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4), "weight"),
    "linear": (lambda: nn.Linear(4, 3, bias=False), torch.randn(2, 4), "weight"),
    "lstm": (lambda: nn.LSTM(4, 5, num_layers=2, batch_first=True), torch.randn(2, 3, 4), "weight_ih_l1"),
    "gru": (lambda: nn.GRU(4, 5, bidirectional=True), torch.randn(3, 2, 4), "weight_hh_l0_reverse"),
    "rnn": (lambda: nn.RNN(4, 5), torch.randn(3, 2, 4), "weight_hh_l0"),
    "lstm cell": (lambda: nn.LSTMCell(4, 5), torch.randn(2, 4), "weight_hh"),
    "gru cell": (lambda: nn.GRUCell(4, 5), torch.randn(2, 4), "weight_hh"),
    "rnn cell": (lambda: nn.RNNCell(4, 5), torch.randn(2, 4), "weight_hh"),
}


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_of_the_call_is_used_and_the_own_one_without_it(name: str) -> None:
    torch.manual_seed(0)
    make, x, weight = LAYERS[name]
    layer = make()
    state = () if "cell" not in name else (torch.randn(2, 5),)
    if name == "lstm cell":
        state = ((torch.randn(2, 5), torch.randn(2, 5)),)
    own = _first(layer(x, *state))
    with torch.no_grad():
        given = getattr(layer, weight) * 0.5
    layer.__class__ = WITH_WEIGHT_ARGUMENT[type(layer)]
    assert torch.equal(_first(layer(x, *state)), own)
    called = _first(layer(x, *state, **{weight: given}))
    assert not torch.allclose(called, own)
    assert torch.equal(_first(layer(x, *state)), own)
    with torch.no_grad():
        getattr(layer, weight).mul_(0.5)
    torch.testing.assert_close(_first(layer(x, *state)), called)


def test_every_layer_of_the_table_is_tried() -> None:
    assert {type(make()) for make, _, _ in LAYERS.values()} == set(WITH_WEIGHT_ARGUMENT)

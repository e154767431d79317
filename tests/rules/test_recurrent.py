"""Recurrent layers: inputs, hidden channels, states, projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from invariant import check_invariant, net, tokens
from torch import Tensor, nn
from torch.nn.utils import rnn

import fxprune


def around(layer: nn.Module, width: int, **parts: Any) -> nn.Module:
    """A recurrent layer between two linear ones."""
    return net(
        lambda self, x: self.out(self.layer(self.a(x).sigmoid())[0].sigmoid()),
        a=nn.Linear(4, 6),
        layer=layer,
        out=nn.Linear(width, 2),
        **parts,
    )


def unrolled(cell: nn.Module) -> nn.Module:
    """A cell that is called step by step."""

    def forward(self: Any, x: Tensor) -> Tensor:
        state, hidden = None, x
        for step in self.a(x).sigmoid().unbind(1):
            state = self.cell(step, state)
            hidden = state[0] if isinstance(state, tuple) else state
        return self.out(hidden)

    return net(forward, a=nn.Linear(4, 6), cell=cell, out=nn.Linear(5, 2))


def with_states(layer: nn.Module, sizes: tuple[int, ...]) -> nn.Module:
    """A recurrent layer whose states are given, made of the input."""

    def forward(self: Any, x: Tensor) -> Tensor:
        states = tuple(make(x[:, 0])[None] for make in self.states)
        return self.out(self.layer(x, states if len(states) > 1 else states[0])[0])

    parts = nn.ModuleList(nn.Linear(4, size) for size in sizes)
    return net(forward, states=parts, layer=layer, out=nn.Linear(sizes[0], 2))


def packed(layer: nn.Module, width: int) -> nn.Module:
    """A recurrent layer over samples of different lengths, which the input tells."""

    def forward(self: Any, x: Tensor) -> Tensor:
        lengths = (x[..., 0] > 0).sum(1).clamp(1, x.size(1))
        y = rnn.pack_padded_sequence(self.a(x).sigmoid(), lengths, batch_first=True, enforce_sorted=False)
        padded, _ = rnn.pad_packed_sequence(self.layer(y)[0], batch_first=True)
        return self.out(padded.sigmoid())

    return net(forward, a=nn.Linear(4, 6), layer=layer, out=nn.Linear(width, 2))


NETS = {
    "lstm of two layers": (lambda: around(nn.LSTM(6, 5, 2, batch_first=True), 5), 11),
    "gru in both directions": (lambda: around(nn.GRU(6, 5, batch_first=True, bidirectional=True), 10), 11),
    "rnn in two layers and both directions": (
        lambda: around(nn.RNN(6, 5, 2, batch_first=True, bidirectional=True, nonlinearity="relu"), 10),
        11,
    ),
    "lstm without bias": (lambda: around(nn.LSTM(6, 5, bias=False, batch_first=True), 5), 11),
    "lstm with a projection": (lambda: around(nn.LSTM(6, 8, proj_size=5, batch_first=True), 5), 11),
    "lstm with a projection, two layers and both directions": (
        lambda: around(nn.LSTM(6, 8, 2, proj_size=5, batch_first=True, bidirectional=True), 10),
        11,
    ),
    "lstm with a projection to one": (lambda: around(nn.LSTM(6, 3, proj_size=1, batch_first=True), 1), 6),
    "lstm with given states": (lambda: with_states(nn.LSTM(4, 5, batch_first=True), (5, 5)), 5),
    "lstm with a projection and given states": (
        lambda: with_states(nn.LSTM(4, 8, proj_size=5, batch_first=True), (5, 8)),
        5,
    ),
    "packed lstm": (lambda: packed(nn.LSTM(6, 5, batch_first=True), 5), 11),
    "packed gru of two layers in both directions": (
        lambda: packed(nn.GRU(6, 5, 2, batch_first=True, bidirectional=True), 10),
        11,
    ),
    "lstm cell": (lambda: unrolled(nn.LSTMCell(6, 5)), 11),
    "gru cell": (lambda: unrolled(nn.GRUCell(6, 5)), 11),
    "rnn cell": (lambda: unrolled(nn.RNNCell(6, 5)), 11),
}


@pytest.mark.parametrize("name", NETS)
def test_recurrent_layers_keep_the_invariant(name: str) -> None:
    make, channels = NETS[name]
    check_invariant(make(), tokens(), channels)


def test_the_state_of_a_projecting_lstm_stays_and_says_why() -> None:
    graph = check_invariant(nn.Sequential(nn.LSTM(4, 8, proj_size=5)), torch.randn(3, 2, 4), 0)
    assert "has to stay wider than its projection (_0): 8 channels" in str(graph)


class Encoder(nn.Module):
    """As in Tacotron 2: convolutions, and a recurrent layer over the lengths that are given."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(4, 8, 3, padding=1)
        self.recurrent = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        steps = self.convolution(x).relu().transpose(1, 2)
        packed = rnn.pack_padded_sequence(steps, lengths, batch_first=True)
        return self.last(rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0])


def test_sequences_packed_by_given_lengths_are_pruned_and_come_back(tmp_path: Path) -> None:
    model, inputs = Encoder().eval(), (torch.randn(3, 4, 7), torch.tensor([7, 5, 2]))
    check_invariant(model, inputs, 13, other_batch=False)
    model.float()
    pruned = fxprune.prune(model, 0.5, example_inputs=inputs, compensate=False)
    fxprune.save(pruned, tmp_path / "model.safetensors")
    loaded = fxprune.load(tmp_path / "model.safetensors", original=model)
    others = torch.randn(2, 4, 9), torch.tensor([8, 3])
    assert torch.equal(loaded(*others), pruned(*others))
    assert fxprune.verify(model, pruned, others) < 1e-9

"""Recurrent layers: inputs, hidden channels, states, projections."""

from __future__ import annotations

from pathlib import Path

import torch
from invariant import check_invariant, tokens
from layer_nets import RECURRENT, invariant_test
from torch import Tensor, nn
from torch.nn.utils import rnn

import fxprune

test_recurrent_layers_keep_the_invariant = invariant_test(
    {name: (make, tokens(), channels) for name, (make, channels) in RECURRENT.items()}
)


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

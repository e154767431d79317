"""Gradients by gates on channels, sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scoring.nets import convolutions, samples, turned

import fxprune
from fxprune.data import Batches
from fxprune.errors import CannotScoreError
from fxprune.scoring.gate_gradients import gate_gradients


def test_gate_gradients_are_those_of_channels_scaled_by_hand() -> None:
    net, graph = convolutions()
    got = torch.cat(list(gate_gradients(graph, Batches(samples(labels=True)), probes=0)))
    inputs = torch.cat([x for x, _ in samples(labels=True)])
    labels = torch.cat([y for _, y in samples(labels=True)])
    gates = torch.ones(12, 8, 1, 1, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(net[2:](net[:2](inputs) * gates), labels, reduction="sum").backward()
    assert gates.grad is not None
    group = next(group for group in graph.groups if len(group) == 8)
    assert torch.allclose(got[:, group.channels], gates.grad.view(12, 8))


def test_a_model_that_moves_the_batch_is_read_sample_by_sample() -> None:
    model = turned()
    inputs, labels = torch.randn(5, 7, 3), torch.arange(5) % 4
    graph = fxprune.analyze(fxprune.trace(model, inputs[:1]))
    together, alone = (
        torch.cat(list(gate_gradients(graph, Batches(data), probes=0)))
        for data in ([(inputs, labels)], [(inputs[k : k + 1], labels[k : k + 1]) for k in range(5)])
    )
    assert together.shape == (5, graph.num_channels)
    torch.testing.assert_close(together, alone)


def test_samples_that_the_model_does_not_take_are_named() -> None:
    _, graph = convolutions()
    with pytest.raises(CannotScoreError, match=r"does not run on data of shapes \(2, 5, 4, 4\)"):
        next(gate_gradients(graph, Batches([torch.zeros(2, 5, 4, 4, dtype=torch.float64)])))

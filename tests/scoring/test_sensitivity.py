"""Scores from gradients at the gates, on a little data."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.scoring.sensitivity import fisher_scores, gate_gradients, taylor_scores


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 3)),
    )
    with torch.no_grad():
        net[2].weight[:, 3] = 0.0
    return net.double().eval()


def _data(labels: bool) -> list[tuple[Tensor, Tensor] | Tensor]:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 1, 4, 4, generator=random, dtype=torch.float64)
    classes = torch.arange(12) % 3
    return [(inputs[i : i + 5], classes[i : i + 5]) if labels else inputs[i : i + 5] for i in range(0, 12, 5)]


def _graph(net: nn.Module) -> fxprune.ChannelGraph:
    return fxprune.analyze(fxprune.trace(net, torch.zeros(1, 1, 4, 4, dtype=torch.float64)))


def test_gate_gradients_are_those_of_channels_scaled_by_hand() -> None:
    net = _net()
    graph = _graph(net)
    got = torch.cat(list(gate_gradients(graph, _data(labels=True), probes=0)))
    inputs = torch.cat([x for x, _ in _data(labels=True)])
    labels = torch.cat([y for _, y in _data(labels=True)])
    gates = torch.ones(12, 8, 1, 1, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(net[2:](net[:2](inputs) * gates), labels, reduction="sum").backward()
    assert gates.grad is not None
    group = next(group for group in graph.groups if len(group) == 8)
    assert torch.allclose(got[:, group.channels], gates.grad.view(12, 8))


def test_a_channel_that_nothing_reads_has_no_score_and_the_others_have() -> None:
    graph = _graph(_net())
    group = next(group for group in graph.groups if len(group) == 8)
    for labels in (True, False):
        for score in (fisher_scores, taylor_scores):
            values = score(graph, _data(labels))[group.channels]
            assert values[3] == 0
            assert (np.delete(values, 3) > 0).all()


def test_scores_are_deterministic_and_leave_the_model_alone() -> None:
    net = _net()
    graph = _graph(net)
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    first, second = fisher_scores(graph, _data(labels=False)), fisher_scores(graph, _data(labels=False))
    assert (first == second).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in graph.module.parameters())

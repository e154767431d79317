"""Mean squares of channels, known from BatchNorm statistics alone."""

from __future__ import annotations

import torch
from scoring.nets import Residual, analysed
from torch import nn

from fxprune.scoring.channel_view import ChannelView
from fxprune.scoring.energies import activation_energies


def test_energies_are_those_of_inputs_with_the_remembered_statistics() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.AvgPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 2))
    norm = model[1]
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.normal_()
        norm.bias.normal_()
        # The energy of a channel after the affine transform and the ReLU, from many normal numbers.
        drawn = (torch.randn(100_000, 8) * norm.weight + norm.bias).relu()
    graph = analysed(model)
    with torch.no_grad():
        energies = {node.name: energy for node, energy in activation_energies(ChannelView(graph)).items()}
    torch.testing.assert_close(energies["_2"], drawn.square().mean(0), rtol=0.4, atol=0.2)
    convolved = drawn.var(0) @ model[3].weight.detach()[:, :, 0, 0].square().T
    torch.testing.assert_close(energies["_3"], convolved, rtol=0.4, atol=0.2)
    # Pooling leaves the order of channels alone.
    assert torch.equal(energies["_4"].argsort(), energies["_3"].argsort())


def test_energies_are_the_same_every_time_and_cover_the_branches_of_a_sum() -> None:
    torch.manual_seed(0)
    graph = analysed(Residual())
    with torch.no_grad():
        first, second = (activation_energies(ChannelView(graph)) for _ in range(2))
    assert all(torch.equal(energy, second[node]) for node, energy in first.items())
    named = {node.name for node in first}
    assert {"norm", "norm_down", "norm_up", "add"} <= named

"""Of several sets of gates the one that loses least on held-out samples is chosen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import fxprune
from fxprune.data import Batch
from fxprune.gates.choosing import least_lossy


def _graph() -> fxprune.ChannelGraph:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with torch.no_grad():
        # The second half of the channels does next to nothing.
        net[4].weight[:, 4:] *= 0.01
    return fxprune.analyze(fxprune.trace(net.eval(), torch.zeros(1, 3, 8, 8)))


def _kept(graph: fxprune.ChannelGraph, *hidden: int) -> npt.NDArray[np.bool_]:
    alive = np.ones(graph.num_channels, dtype=bool)
    alive[graph.groups[0].channels] = np.isin(np.arange(8), hidden)
    return alive


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_leaves_the_outputs_nearest_is_chosen(place: int, compensated: bool) -> None:
    graph = _graph()
    candidates = [_kept(graph, 4, 5, 6, 7), _kept(graph, 0, 5, 6, 7)]
    candidates.insert(place, _kept(graph, 0, 1, 2, 3))
    samples = Batch((torch.randn(64, 3, 8, 8),), {})
    assert least_lossy(graph, candidates, samples, compensated=compensated) == place


def test_the_last_is_chosen_of_equals_and_where_nothing_can_judge() -> None:
    graph = _graph()
    same = [_kept(graph, 0, 1), _kept(graph, 0, 1)]
    assert least_lossy(graph, same, Batch((torch.randn(16, 3, 8, 8),), {}), compensated=False) == 1
    different = [_kept(graph, 0, 1, 2, 3), _kept(graph, 6, 7)]
    assert least_lossy(graph, different, Batch((torch.randn(1, 3, 8, 8),), {}), compensated=False) == 1

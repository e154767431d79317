"""Costs are set right between groups by what cuts of each do to the outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels import Scores
from fxprune.data import Batch
from fxprune.scoring import surgeon
from fxprune.scoring.measured import _Changed, _rescaled, calibrate_costs
from fxprune.scoring.sensitivity import fisher_scores
from fxprune.scoring.surgeon import surgeon_scores


def small() -> tuple[fxprune.ChannelGraph, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    data = torch.randn(64, 3, 8, 8)
    return fxprune.analyze(fxprune.trace(model.eval(), data[:1])), data


def readers(graph: fxprune.ChannelGraph, data: Tensor) -> tuple[surgeon._Walk, list[surgeon._Reader]]:
    walk = surgeon._walked(graph, [data], 0)
    return walk, list(walk.readers(1e-2, False))


def test_a_layer_without_channels_gives_what_the_cut_and_refitted_layer_would() -> None:
    graph, data = small()
    walk, layers = readers(graph, data)
    gone = np.array([1, 4, 5])
    for group in graph.groups:
        (reader,) = surgeon._of_group(graph, layers, group)
        weight, added = reader.without(gone)
        assert (weight[:, gone] == 0).all()
        assert not torch.equal(weight, reader.own)
        module = graph.module.get_submodule(walk.found[reader.node].weight.removesuffix(".weight"))
        expected = graph.module(data)
        with torch.no_grad():
            got = _Changed(graph.module, {reader.node: (weight, added)}, walk.found).run(data)
            before, module.weight.data = module.weight.data, weight
            bias, module.bias.data = module.bias.data, module.bias.data + added
            torch.testing.assert_close(got, graph.module(data))
            module.weight.data, module.bias.data = before, bias
        assert torch.equal(graph.module(data), expected)


def test_costs_become_the_mean_in_logarithms_of_what_they_are_and_what_is_measured() -> None:
    costs = np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0])
    right = _rescaled(costs, [2, 4, 6], [2.0 * 4, 2.0 * 4 + 4.0 * 9, 2.0 * 4 + 4.0 * 9 + 8.0 * 16])
    assert right.tolist() == pytest.approx([2.0, 2.0, 6.0, 6.0, 16.0, 16.0, 32.0, 32.0])
    # Less lost by a larger cut is noise: costs never fall.
    assert (np.diff(_rescaled(costs, [2, 4, 6], [4.0, 3.0, float("inf")])) >= 0).all()


def test_a_group_that_costs_more_than_was_thought_keeps_more() -> None:
    graph, data = small()
    walk, layers = readers(graph, data)
    first, second = graph.groups
    costs = fisher_scores(graph, [data])
    # As if the second order took the first group for a thousandth of what it is.
    costs[first.channels] *= 1e-3
    right = calibrate_costs(
        graph, costs, lambda group: surgeon._of_group(graph, layers, group), walk.found, Batch((data[32:],), {})
    )

    def share(scores: Scores) -> float:
        return float(scores[first.channels].sum() / scores[second.channels].sum())

    assert share(right) > 5 * share(costs)
    unread = calibrate_costs(graph, costs, lambda group: [], walk.found, Batch((data,), {}))
    assert np.array_equal(unread, costs)


def test_the_surgeon_measures_unless_there_is_a_single_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = small()
    measured, of_one = surgeon_scores(graph, [data]), surgeon_scores(graph, [data[:1]])
    monkeypatch.setattr(surgeon, "calibrate_costs", lambda graph, costs, *_: costs)
    assert not np.allclose(measured, surgeon_scores(graph, [data]))
    assert np.array_equal(of_one, surgeon_scores(graph, [data[:1]]))

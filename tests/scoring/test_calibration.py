"""Costs are calibrated between groups by what cuts of each do to the outputs."""

from __future__ import annotations

import numpy as np
import pytest
from scoring.nets import small
from torch import Tensor

import fxprune
from fxprune.channels import Group, Scores
from fxprune.data import Batch
from fxprune.scoring.calibration import _rescaled, calibrate_costs
from fxprune.scoring.layer_statistics import collect_statistics
from fxprune.scoring.refitting import Reader
from fxprune.scoring.sensitivity import fisher_scores


def test_costs_become_the_geometric_mean_of_what_they_are_and_what_is_measured() -> None:
    costs = np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0])
    right = _rescaled(costs, [2, 4, 6], [2.0 * 4, 2.0 * 4 + 4.0 * 9, 2.0 * 4 + 4.0 * 9 + 8.0 * 16])
    assert right.tolist() == pytest.approx([2.0, 2.0, 6.0, 6.0, 16.0, 16.0, 32.0, 32.0])
    # If a larger cut loses less, that is noise: costs never fall.
    assert (np.diff(_rescaled(costs, [2, 4, 6], [4.0, 3.0, float("inf")])) >= 0).all()


def calibrated(graph: fxprune.ChannelGraph, data: Tensor, costs: Scores, unread: bool = False) -> Scores:
    layers = collect_statistics(graph, [Batch((data,), {})], seed=0).readers(1e-2, 0)

    def readers(group: Group) -> list[Reader]:
        return [] if unread else [local for layer in layers if (local := layer.within(graph, group)) is not None]

    return calibrate_costs(graph, costs, readers, Batch((data[32:],), {}))


def test_a_group_that_costs_more_than_was_thought_keeps_more() -> None:
    graph, data = small()
    first, second = graph.groups
    costs = fisher_scores(graph, [data])
    # As if the second order took the first group for a thousandth of what it is.
    costs[first.channels] *= 1e-3

    def share(scores: Scores) -> float:
        return float(scores[first.channels].sum() / scores[second.channels].sum())

    assert share(calibrated(graph, data, costs)) > 5 * share(costs)
    assert np.array_equal(calibrated(graph, data, costs, unread=True), costs)

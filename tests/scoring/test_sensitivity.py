"""Scores from gradients at the gates, on a little data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scoring.nets import convolutions, samples

from fxprune.scoring.sensitivity import fisher_scores, per_cost, taylor_scores


def test_a_channel_that_nothing_reads_has_no_score_and_the_others_have() -> None:
    _, graph = convolutions()
    group = next(group for group in graph.groups if len(group) == 8)
    for labels in (True, False):
        for score in (fisher_scores, taylor_scores):
            values = score(graph, samples(labels))[group.channels]
            assert values[3] == 0
            assert (np.delete(values, 3) > 0).all()


def test_scores_are_deterministic_and_leave_the_model_alone() -> None:
    _, graph = convolutions()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    first, second = fisher_scores(graph, samples(labels=False)), fisher_scores(graph, samples(labels=False))
    assert (first == second).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in graph.module.parameters())


def test_scores_per_cost_divide_by_the_flops_of_a_channel() -> None:
    _, graph = convolutions()
    first, second = graph.groups
    scores = np.ones(graph.num_channels)
    assert per_cost(graph, scores, 0.0) is scores
    cost = graph.flops.marginal(np.ones(graph.num_channels, dtype=bool))
    divided = per_cost(graph, scores, 1.0)
    ratio = divided[first.channels[0]] / divided[second.channels[0]]
    assert ratio == pytest.approx(cost[second.channels[0]] / cost[first.channels[0]])


@pytest.mark.parametrize("score", [fisher_scores, taylor_scores])
def test_progress_is_a_function_or_a_bool(score: Any) -> None:
    _, graph = convolutions()
    steps: list[tuple[str, int]] = []
    told = score(graph, samples(labels=True), progress=lambda name, done, total, figures: steps.append((name, done)))
    assert steps == [("score", 5), ("score", 10), ("score", 12)]
    for progress in (True, False):
        assert np.array_equal(told, score(graph, samples(labels=True), progress=progress))

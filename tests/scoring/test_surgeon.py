"""The surgeon's score knows what other channels can take over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scoring.nets import small
from torch import Tensor, nn

import fxprune
from fxprune.scoring import surgeon
from fxprune.scoring.sensitivity import fisher_scores
from fxprune.scoring.surgeon import surgeon_scores


class InPlace(nn.Module):
    """Two layers, and a third that reads a sum of them; ReLUs write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.first(x), inplace=True)
        x = x + nn.functional.relu(self.second(x), inplace=True)
        return self.head(x.mean((2, 3)))


def test_a_copy_of_another_channel_costs_next_to_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[6], model[0].bias[6]
    data = [torch.randn(512, 5)]
    graph = fxprune.analyze(fxprune.trace(model, data[0][:1]))
    (group,) = graph.groups
    scores = surgeon_scores(graph, data, flops_power=0.0, damping=1e-4)[group.channels]
    plain = fisher_scores(graph, data)[group.channels]
    first, second = sorted(scores[[3, 6]])
    assert first < 0.1 * plain[[3, 6]].min()
    # The one that stays does the work of both.
    # Not 2: the random directions of both scores differ.
    assert second > 1.9 * plain[[3, 6]].max()


def test_what_is_learned_does_not_change_the_model() -> None:
    model = InPlace()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(1, 3, 8, 8), copy=False))
    scores = surgeon_scores(graph, [(torch.randn(20, 3, 8, 8), torch.arange(20) % 4)])
    assert np.isfinite(scores).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training


def test_more_samples_of_the_same_scenes_do_not_make_channels_cheap() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 10))
    scenes = torch.randn(24, 40)
    again = (scenes.repeat(4, 1) + 0.01 * torch.randn(96, 40))[torch.randperm(96)]
    graph = fxprune.analyze(fxprune.trace(model, scenes[:1]))
    (group,) = graph.groups
    few, many = (surgeon_scores(graph, [data], flops_power=0.0)[group.channels].sum() for data in (scenes, again))
    # Judged on the scenes that it was fitted to, this would be about half.
    assert many > 0.75 * few


def test_the_surgeon_measures_unless_there_is_a_single_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = small()
    measured, of_one = surgeon_scores(graph, [data]), surgeon_scores(graph, [data[:1]])
    monkeypatch.setattr(surgeon, "calibrate_costs", lambda graph, costs, *_: costs)
    assert not np.allclose(measured, surgeon_scores(graph, [data]))
    assert np.array_equal(of_one, surgeon_scores(graph, [data[:1]]))


def test_progress_shows_every_group() -> None:
    graph, data = small()
    steps: list[tuple[Any, ...]] = []
    shown = fxprune.scores(graph, "surgeon", data=data, progress=lambda *step: steps.append(step[:3]))
    assert [step for step in steps if step[0] == "refit"] == [("refit", k + 1, 8) for k in range(8)]
    assert np.array_equal(shown, fxprune.scores(graph, "surgeon", data=data, progress=True))


def test_layers_that_cannot_be_refitted_are_an_error_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def singular(*_: object) -> None:
        torch.linalg.inv(torch.zeros(2, 2))

    monkeypatch.setattr("fxprune.scoring.refitting.Refit.remove", singular)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = fxprune.analyze(fxprune.trace(model, torch.zeros(1, 4)))
    with pytest.raises(fxprune.CannotScoreError, match=r"cannot be refitted to these samples .*: give more samples"):
        surgeon_scores(graph, [torch.randn(8, 4)])

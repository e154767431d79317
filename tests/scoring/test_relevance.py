"""Relevance finds what reaches the output, whatever the scales on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from invariant import net
from scoring.nets import Residual, analysed, hidden
from torch import Tensor, nn

import fxprune
from fxprune.scoring.relevance import _relevance_by_activation


@pytest.fixture
def model() -> Residual:
    torch.manual_seed(0)
    return Residual()


def test_relevance_is_blind_to_scales_that_batchnorm_removes(model: Residual) -> None:
    before = fxprune.scores(analysed(model), "relevance")
    with torch.no_grad():
        model.down.weight *= 5
        model.norm_down.running_mean *= 5
        model.norm_down.running_var *= 25
    np.testing.assert_allclose(fxprune.scores(analysed(model), "relevance"), before, rtol=1e-3)


def test_relevance_of_a_branch_is_that_of_what_it_adds(model: Residual) -> None:
    graph = analysed(model)
    before = hidden(graph, fxprune.scores(graph, "relevance")).sum()
    with torch.no_grad():
        model.norm_up.weight *= 0.1
    graph = analysed(model)
    assert hidden(graph, fxprune.scores(graph, "relevance")).sum() < 0.1 * before


def test_no_relevance_is_lost_on_the_way() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=2), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4),
    )  # fmt: skip
    graph = analysed(chain)
    with torch.no_grad():
        for channels, values in _relevance_by_activation(graph):
            assert values.sum() == pytest.approx(1.0, abs=1e-4), channels


def test_relevance_goes_through_layers_that_mix_tokens() -> None:
    """Channels that are twice the tokens in number are no conv groups of them."""

    def gated(self: Any, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, -1)
        return self.b(left * self.t(self.n(right)))

    model = net(gated, a=nn.Linear(3, 24), n=nn.LayerNorm(12), t=nn.Conv1d(6, 6, 1), b=nn.Linear(12, 2))
    with torch.no_grad():
        model.b.weight[:, 3:] = 0
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(2, 6, 3)))
    scores = hidden(graph, fxprune.scores(graph, "relevance"), "a")
    assert scores[:3].min() > 0
    assert scores[3:].max() < 1e-6 * scores[:3].min()

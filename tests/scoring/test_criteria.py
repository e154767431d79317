"""Scores find the channels that are known not to matter, and do not depend on scales that do not matter."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from invariant import image, net, parameter, randomise
from refusals import assert_refused, small
from scoring.nets import Residual, analysed, hidden
from torch import Tensor, nn

import fxprune

METHODS = ("relevance", "l1", "l2", "uniform", "batchnorm", "fpgm", "random")


@pytest.fixture
def model() -> Residual:
    torch.manual_seed(0)
    return Residual()


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_finite_and_the_same_every_time(model: Residual, method: str) -> None:
    graph = analysed(model)
    scores = fxprune.scores(graph, method)
    assert scores.shape == (graph.num_channels,)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_array_equal(scores, fxprune.scores(graph, method))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "random"])
def test_a_channel_without_weights_has_the_lowest_score(model: Residual, method: str) -> None:
    with torch.no_grad():
        # Its filter is the mean of all filters too: what geometric median pruning removes.
        model.down.weight -= model.down.weight.mean(0)
        model.down.weight[3], model.norm_down.weight[3], model.norm_down.bias[3], model.up.weight[:, 3] = 0, 0, 0, 0
    graph = analysed(model)
    assert hidden(graph, fxprune.scores(graph, method)).argmin() == 3


def test_scoring_changes_neither_model_nor_random_numbers(model: Residual) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = analysed(model.train())
    graph.module.train()
    state = torch.get_rng_state()
    for method in METHODS:
        fxprune.scores(graph, method)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.module.state_dict().items())


def test_uniform_ranks_by_magnitude_within_a_group(model: Residual) -> None:
    graph = analysed(model)
    ranks, magnitude = fxprune.scores(graph, "uniform"), fxprune.scores(graph, "l2")
    for group in graph.groups:
        assert (np.argsort(ranks[group.channels]) == np.argsort(magnitude[group.channels])).all()
        np.testing.assert_allclose(np.sort(ranks[group.channels]), (np.arange(len(group)) + 0.5) / len(group))


def test_an_unknown_method_is_refused_with_the_known_ones(model: Residual) -> None:
    with pytest.raises(
        fxprune.FxpruneError, match=r"method \(='taylr'\) is not known: use one of 'relevance', .*'fpgm'"
    ):
        fxprune.scores(analysed(model), "taylr")


def test_weights_that_are_nan_are_refused(model: Residual) -> None:
    with torch.no_grad():
        model.down.weight[0, 0] = float("nan")
    for method in ("relevance", "l2", "fpgm", "uniform", "batchnorm"):
        with pytest.raises(fxprune.FxpruneError, match="NaN"):
            fxprune.scores(analysed(model), method)


@pytest.mark.parametrize("method", ["surgeon", "fisher", "taylor"])
def test_scores_from_data_by_name(model: Residual, method: str) -> None:
    graph = analysed(model)
    data = [torch.randn(8, 3, 8, 8), torch.randn(5, 3, 8, 8)]
    scores = fxprune.scores(graph, method, data=data)
    assert scores.shape == (graph.num_channels,)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_array_equal(scores, fxprune.scores(graph, method, data=data))
    with pytest.raises(fxprune.FxpruneError, match="give data"):
        fxprune.scores(graph, method)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / y.std((2, 3), keepdim=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", [nn.Flatten(), nn.Sequential(Standardised(3, 8, 1), nn.Conv2d(8, 2, 1))], ids=repr)
def test_scoring_warns_of_nothing(model: nn.Module, method: str) -> None:
    graph = analysed(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(fxprune.scores(graph, method)).all()


@pytest.mark.parametrize("method", ["l1", "l2", "uniform", "fpgm"])
def test_weights_may_be_complex_or_large(method: str) -> None:
    torch.manual_seed(0)
    large = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).requires_grad_(False)
    large[0].weight.mul_(1e30)
    complex_valued = nn.Sequential(*(nn.Linear(a, b, dtype=torch.cfloat) for a, b in ((4, 8), (8, 2))))
    for model, dtype in ((large, torch.float32), (complex_valued, torch.cfloat)):
        graph = fxprune.analyze(fxprune.trace(model, torch.ones(3, 4, dtype=dtype)))
        found = fxprune.scores(graph, method)
        assert (found[graph.groups[0].channels] > 0).all()
        if method == "l2":
            first, second = (layer.weight.detach().abs().double() for layer in model)
            norms = [first.norm(dim=1).numpy(), second.norm(dim=0).numpy()]
            np.testing.assert_allclose(found[graph.groups[0].channels], sum(n / n.mean() for n in norms) / 2, rtol=1e-5)


def _placed(self: Any, x: Tensor) -> Tensor:
    """The positions of the output, which has fewer channels, are labelled by a table of them."""
    return self.b(self.a(x).relu() + self.table)


def _summed(self: Any, x: Tensor) -> Tensor:
    return F.linear(self.a(x.movedim(1, -1)).relu(), self.weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "model",
    [
        net(_placed, a=nn.Conv2d(3, 8, 1), table=parameter(1, 1, 6, 1), b=nn.Conv2d(8, 2, 1)),
        net(_summed, a=nn.Linear(3, 8), weight=parameter(8)),
    ],
    ids=["positions", "one output"],
)
def test_layers_whose_outputs_are_no_channels_are_scored(model: nn.Module, method: str) -> None:
    graph = fxprune.analyze(fxprune.trace(randomise(model).float(), image()))
    assert [len(group) for group in graph.groups] == [8]
    assert np.isfinite(fxprune.scores(graph, method)).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    model = small()
    with torch.no_grad():
        model[2].weight[3, 0, 0, 0] = value
    message = r"^weight 2\.weight has NaN or infinite entries"
    assert_refused(model, lambda: fxprune.prune(model, 0.5, example_inputs=image()), message)


def test_an_unknown_method_and_bad_scores_are_refused() -> None:
    model = small()
    assert_refused(
        model, lambda: fxprune.prune(model, 0.5, example_inputs=image(), method="l3"), r"^method \(='l3'\) is not known"
    )
    for bad, message in ((np.ones(3), "scores have shape"), (np.full(21, np.nan), "scores are not finite")):
        assert_refused(
            model, lambda bad=bad: fxprune.prune(model, 0.5, example_inputs=image(), method=lambda _: bad), message
        )


@pytest.mark.parametrize("method", ["l2", "relevance"])
def test_scores_do_not_depend_on_the_scale_of_layers(method: str) -> None:
    model = randomise(small())
    before = fxprune.scores(fxprune.analyze(fxprune.trace(model, image().double())), method)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(100)
    assert fxprune.scores(fxprune.analyze(fxprune.trace(model, image().double())), method) == pytest.approx(before)

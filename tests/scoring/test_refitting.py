"""A layer refitted to fewer channels: what it costs, and that it is what the cut model would run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scoring.nets import small
from torch import Tensor

from fxprune.channels import Group
from fxprune.data import Batch
from fxprune.layers.contraction import Contraction
from fxprune.scoring.calibration import _ChangedModel
from fxprune.scoring.layer_statistics import collect_statistics
from fxprune.scoring.refitting import Reader, Refit


def reader(covariance: Tensor, weight: Tensor) -> Reader:
    """A linear layer whose outputs all matter alike, on inputs of mean zero."""
    inputs = len(covariance)
    return Reader(
        node="layer",
        contraction=Contraction(None, "weight", None),  # type: ignore[arg-type]
        channels=np.arange(inputs),
        mean=torch.zeros(inputs, dtype=torch.float64),
        second_moments=covariance.diagonal(),
        covariance=covariance.float(),
        inverse=torch.linalg.inv(covariance),
        own=weight,
        roots=torch.ones(len(weight), 1, 1, dtype=torch.float64),
        weight=weight[:, :, None],
    )


def test_an_input_that_is_a_sum_of_others_costs_nothing_and_they_take_over() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=random, dtype=torch.float64)
    x[:, 3] = x[:, 0] - 2 * x[:, 1] + 1e-6 * x[:, 3]
    weight = torch.randn(3, 4, generator=random, dtype=torch.float64)
    refit = Refit(reader(x.T @ x / 200, weight))
    costs = np.zeros(4)
    refit.add_costs(costs)
    assert costs[3] < 1e-9 * costs[2]
    refit.remove(np.array([3]))
    torch.testing.assert_close(x @ refit.weight[:, :, 0].T, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert (refit.weight[:, 3] == 0).all()
    assert refit.error() < 1e-6


def test_the_predicted_cost_is_the_least_squares_error() -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(500, 5, generator=random, dtype=torch.float64) @ torch.randn(5, 5, generator=random).double()
    weight = torch.randn(2, 5, generator=random, dtype=torch.float64)
    refit = Refit(reader(x.T @ x / 500, weight))
    costs = np.zeros(5)
    refit.add_costs(costs)
    refit.remove(np.array([2]))
    others = x[:, [0, 1, 3, 4]]
    best = torch.linalg.lstsq(others, x @ weight.T).solution
    error = float((others @ best - x @ weight.T).square().sum() / 500)
    assert costs[2] == pytest.approx(error, rel=1e-6)
    assert refit.error() == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("taps", [1, 9])
def test_the_error_is_that_of_all_that_was_removed_so_far(taps: int) -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(300, 24, generator=random, dtype=torch.float64) @ torch.randn(24, 24, generator=random).double()
    weight = torch.randn(5, 24, taps, generator=random, dtype=torch.float64)
    layer = replace(reader(x.T @ x / 300, weight[:, :, 0]), weight=weight)
    asked, unasked = Refit(layer), Refit(layer)
    for places in np.random.default_rng(0).permutation(24)[:20].reshape(5, 4):
        for refit in (asked, unasked):
            refit.remove(places)
        change = (weight - asked.weight).movedim(1, 2).flatten(0, 1)
        expected = float((change @ (x.T @ x / 300) * change).sum())
        assert asked.error() == pytest.approx(expected, rel=1e-4)
    assert unasked.error() == pytest.approx(asked.error(), rel=1e-4)


def test_within_a_group_inputs_are_places_and_unread_groups_are_none() -> None:
    graph, data = small()
    (first, second), layers = graph.groups, collect_statistics(graph, [Batch((data,), {})], seed=0).readers(1e-2, 0)
    readers = [[layer.within(graph, group) for layer in layers] for group in (first, second)]
    assert [[each is not None for each in row] for row in readers] == [[True, False], [False, True]]
    local = readers[0][0]
    assert local is not None
    assert local.channels.tolist() == list(range(len(first)))
    nothing = Group("none", first.channels[:0], (), 1)
    assert layers[0].within(graph, nothing) is None


def test_a_layer_without_channels_gives_what_the_cut_and_refitted_layer_would() -> None:
    graph, data = small()
    layers = collect_statistics(graph, [Batch((data,), {})], seed=0).readers(1e-2, 0)
    gone = np.array([1, 4, 5])
    for group in graph.groups:
        (local,) = (found for layer in layers if (found := layer.within(graph, group)) is not None)
        change = local.without(gone)
        assert (change.weight[:, gone] == 0).all()
        assert not torch.equal(change.weight, local.own)
        module = graph.module.get_submodule(change.contraction.weight.removesuffix(".weight"))
        expected = graph.module(data)
        with torch.no_grad():
            got = _ChangedModel(graph.module, {local.node: change}).run(data)
            before, module.weight.data = module.weight.data, change.weight
            bias, module.bias.data = module.bias.data, module.bias.data + change.added
            torch.testing.assert_close(got, graph.module(data))
            module.weight.data, module.bias.data = before, bias
        assert torch.equal(graph.module(data), expected)

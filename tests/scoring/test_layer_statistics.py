"""What layers see is summed up in two halves of the samples."""

from __future__ import annotations

import numpy as np
import torch
from scoring.nets import small, turned
from torch import nn

import fxprune
from fxprune.data import Batch
from fxprune.scoring.layer_statistics import collect_statistics
from fxprune.scoring.sensitivity import fisher_scores


def test_both_halves_together_have_the_moments_of_all_samples() -> None:
    graph, data = small()
    statistics = collect_statistics(graph, [Batch((part,), {}) for part in (data[:40], data[40:])], seed=0)
    assert statistics.samples == 64
    layer = next(each for each in statistics.layers.values() if each.contraction.kernel)
    first, second = layer.halves
    assert first.count == second.count == 32 * 64
    with torch.no_grad():
        x = graph.module.get_submodule("1")(graph.module.get_submodule("0")(data)).movedim(1, -1).reshape(-1, 8)
    torch.testing.assert_close((first.mean() + second.mean()) / 2, x.double().mean(0), rtol=1e-4, atol=1e-6)
    mean = first.mean()
    about = (first.about(0 * mean) + second.about(0 * mean)) / 2
    torch.testing.assert_close(about, (x.double().T @ x.double()) / len(x), rtol=1e-4, atol=1e-6)


def test_judges_are_samples_of_both_halves_and_there_are_none_for_a_single_sample() -> None:
    graph, data = small()
    first, second = collect_statistics(graph, [Batch((data,), {})], seed=0).judges
    assert first is not None
    assert second is not None
    samples = {sample.sum().item() for sample in data}
    sides = [{sample.sum().item() for sample in side.args[0]} for side in (first, second)]
    assert sides[0] | sides[1] <= samples
    assert not sides[0] & sides[1]
    single = collect_statistics(graph, [Batch((data[:1],), {})], seed=0)
    assert single.judges == (None, None)
    assert all(
        half.count == 32 for layer in single.layers.values() for half in layer.halves if layer.contraction.kernel
    )


def test_squared_gradients_are_those_of_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    inputs, labels = torch.randn(10, 3), torch.arange(10) % 4
    graph = fxprune.analyze(fxprune.trace(model, inputs[:1]))
    (layer,) = collect_statistics(graph, [Batch((inputs,), {}, labels)], seed=0).layers.values()
    outputs = model(inputs)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(outputs, labels, reduction="sum"), outputs)
    assert layer.squares is not None
    torch.testing.assert_close(layer.squares.float(), gradient.square().sum(0))


def test_the_same_pass_gives_fisher_scores() -> None:
    graph, data = small()
    labels = torch.arange(len(data)) % 4
    batches = [Batch((data,), {}, labels)]
    fisher = collect_statistics(graph, batches, seed=0).fisher
    np.testing.assert_allclose(fisher, fisher_scores(graph, [(data, labels)]), rtol=1e-4)
    assert fisher.any()


def test_a_model_that_moves_the_batch_is_observed_once_for_each_sample() -> None:
    model = turned()
    inputs, labels = torch.randn(6, 7, 3), torch.arange(6) % 4
    graph = fxprune.analyze(fxprune.trace(model, inputs[:1]))
    (layer,) = collect_statistics(graph, [Batch((inputs,), {}, labels)], seed=0).layers.values()
    assert [half.count for half in layer.halves] == [21, 21]
    hidden = model.a(inputs).relu().detach().double().reshape(-1, 6)
    first, second = layer.halves
    torch.testing.assert_close((first.mean() + second.mean()) / 2, hidden.mean(0), rtol=1e-4, atol=1e-6)

"""What each layer and each group costs, before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.models import load_model
from fxprune.reporting.facts import Change, total


def test_layers_add_up_to_the_model(model: nn.Module, small: nn.Module, made: fxprune.Report) -> None:
    plan = fxprune.plan_of(small)
    assert total(layer.flops for layer in made.layers) == made.flops == Change(plan.flops_before, plan.flops)
    counted = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, small)]
    assert total(layer.parameters for layer in made.layers) == made.parameters == Change(*counted)


def test_channels_of_layers_and_groups_are_those_of_the_weights(small: nn.Module, made: fxprune.Report) -> None:
    layers = {layer.name: layer for layer in made.layers}
    assert layers["one"].channels == Change(24, small.one.out_channels)
    assert layers["up"].channels == Change(8, small.up.out_channels)
    assert layers["scale"].channels is None
    group = next(group for group in made.groups if group.layers == ("one",))
    assert group.channels == layers["one"].channels
    assert group.flops == layers["one"].flops
    assert {"stem", "norm", "two"} <= set(next(g for g in made.groups if "stem" in g.layers).layers)


def test_frozen_channels_have_their_reason_and_their_layers(made: fxprune.Report) -> None:
    reasons = {each.reason: each.layers for each in made.frozen}
    assert any("head" in layers for layers in reasons.values())


@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:test_efficientnet", "torchvision:shufflenet_v2_x0_5"])
def test_costs_of_nodes_add_up_to_those_of_the_graph(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    with torch.device("meta"):
        network = load_model(spec).eval()
    graph = fxprune.analyze(fxprune.trace(network, copy=False))
    random = np.random.default_rng(0)
    for alive in (np.ones(graph.num_channels, dtype=bool), random.random(graph.num_channels) < 0.5):
        assert sum(each(alive) for terms in graph.costs.values() for each in terms) == graph.flops(alive)

"""The ChannelGraph as a user sees it."""

from __future__ import annotations

import pytest
from invariant import image, tokens
from torch import nn

import fxprune


def graph_of(model: nn.Module, inputs: object) -> fxprune.ChannelGraph:
    return fxprune.analyze(fxprune.trace(model.eval(), inputs))


def test_str_lists_groups_members_and_reasons() -> None:
    text = str(graph_of(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), tokens()))
    assert text.splitlines() == [
        "6 prunable channels in 1 group, 6 frozen, 660 FLOPs",
        "  0: 6 channels, only if needed: normalised over; zeros stand in for what is removed",
        "    0.weight[0]",
        "    0.bias[0]",
        "    1.weight[0]",
        "    1.bias[0]",
        "    2.weight[1]",
        "frozen:",
        "  model input (_0): 4 channels",
        "    0.weight[1]",
        "  model output: 2 channels",
        "    2.weight[0]",
        "    2.bias[0]",
    ]


def test_repr_is_one_short_line_however_large_the_model_is() -> None:
    layers = [nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU()) for _ in range(20)]
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 32, 1), *layers, nn.Conv2d(32, 2, 1)), image())
    assert repr(graph) == "ChannelGraph(672 prunable channels in 21 groups, 5 frozen, 1,578,240 FLOPs)"
    assert repr(graph.groups[0]) == "Group('0', 32 channels on 3 dimensions)"
    assert repr(graph.frozen[0]) == "Frozen('model input (_0)', 3 channels on 1 dimension)"
    assert len(str(graph)) > 1000


def test_the_labels_of_a_tensor_are_found_by_the_name_of_its_node() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), tokens())
    assert graph.labels_of("_0").shape == (2, 5, 6)
    assert graph.labels_of("_0").labelled == (2,)
    with pytest.raises(fxprune.FxpruneError, match="node output does not give one tensor"):
        graph.labels_of("output")


def test_the_price_is_flops_unless_time_was_measured() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), tokens())
    assert graph.price is graph.flops

"""A graph seen along the dimension of each activation that carries channels."""

from __future__ import annotations

import pytest
import torch
from invariant import net, parameter
from scoring.nets import Residual, analysed
from torch import Tensor, fx, nn

import fxprune
from fxprune.scoring.channel_view import ChannelView, result_in_eval


def node_of(graph: fxprune.ChannelGraph, target: str) -> fx.Node:
    return next(node for node in graph.module.graph.nodes if node.target == target)


def test_layers_have_their_squared_weights_by_conv_group_and_their_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(216, 4))
    graph = analysed(model)
    view = ChannelView(graph)
    first, second = node_of(graph, "0"), node_of(graph, "1")
    assert view.squared_weight(first) is None, "the model's input has no channels"
    found = view.squared_weight(second)
    assert found is not None
    assert found[0] is first
    weight = model[1].weight.detach()
    torch.testing.assert_close(found[1], weight.square().sum((2, 3)).view(2, 3, 4))
    assert (view.width(first), view.width(second)) == (8, 6)
    assert view.axis(second)[0] == 1


def test_a_weight_computed_from_parameters_is_one_and_a_weight_computed_from_the_input_is_none() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.a(x)
        y = nn.functional.linear(x, self.weight / self.weight.norm())
        return nn.functional.linear(y, y.mT @ y)

    model = net(forward, a=nn.Linear(3, 8), weight=parameter(5, 8))
    nn.init.normal_(model.get_parameter("weight"))
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(4, 3)))
    view = ChannelView(graph)
    first, second = (node for node in graph.module.graph.nodes if node.target is nn.functional.linear)
    found = view.squared_weight(first)
    assert found is not None
    weight = model.get_parameter("weight").detach()
    torch.testing.assert_close(found[1][0], (weight / weight.norm()).square())
    assert view.squared_weight(second) is None


def test_weights_that_cannot_be_squared_are_named() -> None:
    model = Residual()
    with torch.no_grad():
        model.down.weight[0, 0] = 1e30
    graph = analysed(model)
    with pytest.raises(fxprune.FxpruneError, match=r"down.weight has entries that are too large to be squared"):
        ChannelView(graph).squared_weight(node_of(graph, "down"))


def test_results_are_those_of_eval_and_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True))
    graph = fxprune.analyze(fxprune.trace(model.train(), torch.randn(2, 3)))
    graph.module.train()
    x = torch.randn(5, 4)
    norm, relu = graph.module.get_submodule("1"), graph.module.get_submodule("2")
    torch.testing.assert_close(result_in_eval(node_of(graph, "1"), norm, (x,), {}), x / (1 + 1e-5) ** 0.5)
    assert norm.training
    assert not norm.get_buffer("running_mean").any()
    kept = x.clone()
    assert torch.equal(result_in_eval(node_of(graph, "2"), relu, (x,), {}), kept.relu())
    assert torch.equal(x, kept)
    assert result_in_eval(node_of(graph, "0"), graph.module.get_submodule("0"), (torch.randn(2, 7),), {}) is None

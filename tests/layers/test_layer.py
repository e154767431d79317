"""Convolutions and linear layers are known as modules and as functions, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import net, parameter
from torch import Tensor, fx, nn

import fxprune
from fxprune.layers.layer import Layer, layer_of, output_dimension
from fxprune.ops import Trait, traits


def found_in(model: nn.Module, inputs: Tensor) -> list[Layer]:
    traced = fxprune.trace(model, inputs)
    return [layer for node in traced.graph.nodes if (layer := layer_of(node, traced)) is not None]


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Linear(4, 6), torch.zeros(2, 4)),
        (nn.Conv1d(4, 6, 3, groups=2), torch.zeros(2, 4, 8)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.zeros(2, 4, 8, 8)),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_modules(module: Any, inputs: Tensor) -> None:
    (layer,) = found_in(nn.Sequential(module), inputs)
    assert layer.parameters == ("0.weight", "0.bias")
    assert layer.weight is None
    assert layer.module is not None
    assert layer.input.op == "placeholder"
    assert layer.groups == getattr(module, "groups", 1)
    assert layer.transposed == isinstance(module, nn.ConvTranspose2d)


@pytest.mark.parametrize(
    "call",
    [
        lambda self, x: F.conv2d(x, self.weight, None, 1, 0, 1, 2),
        lambda self, x: F.conv2d(x, weight=self.weight, groups=2),
        lambda self, x: F.conv_transpose2d(x, self.weight, None, 1, 0, 0, 2),
    ],
    ids=["positional", "keyword", "transposed"],
)
def test_functions(call: Any) -> None:
    (layer,) = found_in(net(call, weight=parameter(4, 2, 3, 3)), torch.zeros(2, 4, 8, 8))
    assert layer.parameters == ("weight", None)
    assert layer.weight is not None
    assert layer.weight.target == "weight"
    assert layer.groups == 2
    assert layer.module is None


def test_a_computed_weight_has_a_node_and_no_name() -> None:
    model = net(lambda self, x: F.linear(x, self.weight * 2, self.bias), weight=parameter(6, 4), bias=parameter(6))
    (layer,) = found_in(model, torch.zeros(2, 4))
    assert layer.parameters is None
    assert layer.weight is not None
    assert layer.weight.op == "call_function"


@torch.library.custom_op("fxprune_tests::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


@linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_op_of_another_library_is_none_whatever_its_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.fxprune_tests.linear, (x, graph.get_attr("weight")))
    model = fx.GraphModule({"weight": parameter(4)}, graph)
    assert Trait.LINEAR in traits(node)
    assert layer_of(node, model) is None
    assert not found_in(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Embedding(3, 2)), torch.zeros(2, 4).long())


@pytest.mark.parametrize(
    ("kind", "rank", "dimension"),
    [
        (Trait.LINEAR, 2, 0),
        (Trait.CONVOLUTION, 4, 0),
        (Trait.CONVOLUTION | Trait.TRANSPOSED, 4, 1),
        (Trait.EMBEDDING, 2, 1),
        (Trait.EMBEDDING, 1, 0),
        (Trait.MATRIX_PRODUCT, 3, 2),
        (Trait.CHANNEL_NORM, 1, 0),
    ],
)
def test_outputs_are_along_one_dimension_of_the_weight(kind: Trait, rank: int, dimension: int) -> None:
    assert output_dimension(kind, rank) == dimension

"""A layer on rows of its inputs is its weight times them."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import net
from torch import Tensor, fx, nn

import fxprune
from fxprune.layers.contraction import Contraction, contraction_of, find_parameter, rows_of


def contraction(model: nn.Module, inputs: Tensor) -> tuple[fx.GraphModule, Contraction | None]:
    traced = fxprune.trace(model, inputs)
    layers = F.conv2d, F.linear, torch.matmul, operator.matmul, torch.mm, torch.addmm, torch.bmm
    layer = next(node for node in traced.graph.nodes if node.op == "call_module" or node.target in layers)
    return traced, contraction_of(layer, traced)


def functional(**arguments: Any) -> nn.Module:
    return net(
        lambda self, x: F.conv2d(x, self.weight, self.bias, **arguments),
        weight=nn.Parameter(torch.randn(6, 2, 3, 3)),
        bias=nn.Parameter(torch.randn(6)),
    )


def product(forward: Any) -> nn.Module:
    return net(forward, a=nn.Parameter(torch.randn(4, 6)), b=nn.Parameter(torch.randn(6)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(4, 6), (3, 5, 4)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9)),
        (nn.Conv2d(4, 6, (3, 2), dilation=2, groups=2, bias=False), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (3, 4, 7, 8)),
        (nn.Conv3d(4, 6, 2), (3, 4, 4, 5, 3)),
        (functional(stride=(2, 1), padding=1, groups=2), (3, 4, 9, 8)),
        (net(lambda self, x: x @ self.a, a=nn.Parameter(torch.randn(4, 6))), (3, 5, 4)),
        (product(lambda self, x: torch.matmul(x, self.a) + self.b), (3, 5, 4)),
        (product(lambda self, x: torch.addmm(self.b, x, self.a)), (15, 4)),
    ],
    ids=["linear", "1d", "2d", "circular", "3d", "function", "product", "product and sum", "addmm"],
)
def test_rows_times_the_weight_are_the_outputs(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    traced, found = contraction(nn.Sequential(model), x)
    assert found is not None
    with torch.no_grad():
        y = traced(x)
    if found.bias is None:
        # It is no part of the layer.
        y = y - getattr(model, "b", 0)
    inputs, outputs = rows_of(found, x, y.detach(), 5.0, torch.Generator().manual_seed(1))
    assert inputs.shape[:2] == outputs.shape[:2] == (15, found.groups)
    weight = found.by_outputs(find_parameter(traced, found.weight).detach())
    bias = 0 if found.bias is None else find_parameter(traced, found.bias).detach().view(found.groups, -1)
    table = weight.reshape(found.groups, -1, inputs.shape[2])
    torch.testing.assert_close(torch.einsum("rgi,goi->rgo", inputs, table) + bias, outputs)


@pytest.mark.parametrize("positions", [100, 30_000])
def test_random_positions_are_different_ones_and_those_of_the_seed(positions: int) -> None:
    x = torch.arange(positions).view(2, -1, 1).expand(-1, -1, 4)
    found = contraction(nn.Linear(4, 6), torch.zeros(2, 3, 4))[1]
    assert found is not None
    drawn = [rows_of(found, x, x, 40, torch.Generator().manual_seed(seed))[0][:, 0, 0] for seed in (1, 1, 2)]
    assert all(len(rows.unique()) == 80 for rows in drawn)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0].sort().values, drawn[2].sort().values)


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.ReLU(), torch.zeros(2, 4)),
        (nn.ConvTranspose2d(4, 6, 3), torch.zeros(2, 4, 5, 5)),
        (functional(padding="same", groups=2), torch.zeros(2, 4, 5, 5)),
        (net(lambda self, x: F.linear(x, self.a), a=nn.Parameter(torch.zeros(4))), torch.zeros(2, 4)),
        (product(lambda self, x: torch.addmm(self.b, x, self.a, alpha=2)), torch.zeros(2, 4)),
        (product(lambda self, x: x @ self.a.abs()), torch.zeros(2, 4)),
        (net(lambda self, x: x @ self.a, a=nn.Parameter(torch.zeros(2, 4, 6))), torch.zeros(2, 3, 4)),
        (net(lambda self, x: x @ self.a, a=nn.Parameter(torch.zeros(4, 6))), torch.zeros(4)),
        (net(lambda self, x: F.linear(x, self.a * 2), a=nn.Parameter(torch.zeros(3, 4))), torch.zeros(2, 4)),
    ],
    ids=[
        "another op",
        "transposed",
        "padding by a word",
        "one output",
        "scaled",
        "a computed factor",
        "a batch",
        "a vector",
        "a computed weight",
    ],
)
def test_what_is_no_plain_product_is_none(model: nn.Module, inputs: Tensor) -> None:
    assert contraction(nn.Sequential(model), inputs)[1] is None


def test_a_subclass_with_a_forward_of_its_own_is_none() -> None:
    graph = fx.Graph()
    node = graph.call_module("own", (graph.placeholder("x"),))
    assert contraction_of(node, fx.GraphModule({"own": Own(3, 2)}, graph)) is None
    assert contraction_of(node, fx.GraphModule({"own": nn.Linear(3, 2)}, graph)) is not None


def test_an_op_of_another_library_is_none_whatever_its_name() -> None:
    def matmul(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight + 1

    graph = fx.Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    x.meta["value"], weight.meta["value"] = torch.zeros(2, 4), torch.zeros(4, 6)
    model = fx.GraphModule({"weight": torch.zeros(4, 6)}, graph)
    assert contraction_of(graph.call_function(torch.matmul, (x, weight)), model) is not None
    assert contraction_of(graph.call_method("matmul", (x, weight)), model) is not None
    assert contraction_of(graph.call_function(matmul, (x, weight)), model) is None

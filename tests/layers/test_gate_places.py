"""Gates are put in few places, and closing them there removes the channels."""

from __future__ import annotations

import torch
from invariant import image, net
from torch import Tensor, nn

import fxprune
from fxprune.layers.gate_places import depends_on_input, gate_places


def test_depthwise_convolutions_need_no_gate() -> None:
    layers = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = fxprune.analyze(fxprune.trace(nn.Sequential(*layers), image()))
    (place,) = gate_places(graph)
    assert (place.node, place.argument, place.dim) == ("_3", "_2", 1)
    assert place.from_input
    assert place.channels.tolist() == graph.groups[0].channels.tolist()


def test_grouped_convolutions_need_one() -> None:
    layers = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1))
    graph = fxprune.analyze(fxprune.trace(nn.Sequential(*layers), image()))
    assert [place.node for place in gate_places(graph)] == ["_1", "_2"]


def test_of_two_factors_only_the_one_that_depends_on_the_input_has_a_gate() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.a(x) @ self.b(self.table).mT

    model = net(forward, a=nn.Linear(3, 8), b=nn.Linear(5, 8), table=torch.randn(7, 5))
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(4, 3)))
    (place,) = (place for place in gate_places(graph) if place.node == "matmul")
    assert (place.argument, place.from_input) == ("a", True)
    assert "b" not in depends_on_input(graph.module.graph)
    assert {"a", place.node} <= depends_on_input(graph.module.graph)

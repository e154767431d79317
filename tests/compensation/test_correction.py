"""Which layers of a pruned model are corrected: those whose parameters no other node uses."""

from __future__ import annotations

import torch
from invariant import net
from torch import Tensor, fx, nn

import fxprune
from fxprune.compensation.correction import _Layers


def nodes(traced: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in traced.graph.nodes}


def test_a_layer_is_fitted_together_with_the_norm_that_alone_reads_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    traced = fxprune.trace(model, torch.zeros(1, 3, 9, 9), copy=False)
    layers, by_name = _Layers(traced), nodes(traced)
    first, second = layers.fitted(by_name["_0"]), layers.fitted(by_name["_2"])
    assert first is not None
    assert first.norm is traced.get_submodule("1")
    assert first.norm_node is by_name["_1"]
    assert first.owns_bias
    assert second is not None
    assert second.norm is None
    assert layers.fitted(by_name["_1"]) is None
    assert layers.batch_norm(by_name["_1"]) is traced.get_submodule("1")
    assert layers.batch_norm(by_name["_0"]) is None
    assert len(layers.statistics()) == 4


def test_what_is_used_twice_is_left_as_it_is() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.norm(self.norm(self.a(self.b(x))))
        # To read the size of a weight is no use of it.
        return nn.functional.linear(x, self.c.weight * 2) + self.d(x).view(-1, self.d.weight.size(0))

    layers = {name: nn.Linear(4, 4) for name in "abcd"}
    layers["a"].weight, layers["b"].bias = layers["c"].weight, layers["d"].bias
    model = net(forward, norm=nn.BatchNorm1d(4), **layers)
    traced = fxprune.trace(model, torch.zeros(2, 4), copy=False)
    found, by_name = _Layers(traced), nodes(traced)
    assert found.fitted(by_name["a"]) is None
    assert found.batch_norm(by_name["norm"]) is None
    for name in "bd":
        fitted = found.fitted(by_name[name])
        assert fitted is not None
        assert not fitted.owns_bias

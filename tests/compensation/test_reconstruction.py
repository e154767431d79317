"""A layer gets the weights that give the outputs it should have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.compensation.reconstruction import FittedLayer, Reconstruction
from fxprune.layers.contraction import contraction_of


def layer(module: nn.Module, inputs: Tensor, *, owns_bias: bool = True, norm: Any = None) -> FittedLayer:
    traced = fxprune.trace(nn.Sequential(module), inputs, copy=False)
    found = contraction_of(next(node for node in traced.graph.nodes if node.op == "call_module"), traced)
    assert found is not None
    return FittedLayer(found, module.weight.detach(), module.bias.detach(), owns_bias, None, None, norm)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_weights_that_made_the_outputs_are_found(groups: int) -> None:
    torch.manual_seed(0)
    true, module = (nn.Conv2d(4, 6, 3, padding=1, groups=groups) for _ in range(2))
    inputs = [torch.randn(8, 4, 6, 6) for _ in range(3)]
    with torch.no_grad():
        wanted = [true(x) for x in inputs]
        strength = Reconstruction(2, 16, 32768, 0).apply(layer(module, inputs[0]), inputs, wanted, [1e-8])
    assert strength == 1e-8
    torch.testing.assert_close(module.weight, true.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(module.bias, true.bias, rtol=1e-3, atol=1e-3)


def test_an_intercept_goes_to_the_bias_or_to_the_norm_after_it() -> None:
    torch.manual_seed(0)
    module, norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
    before = module.bias.detach().clone()
    inputs = [torch.randn(64, 4)]
    with torch.no_grad():
        wanted = [module(x) + 1.0 for x in inputs]
        how = Reconstruction(1, 64, 32768, 0)
        how.apply(layer(module, inputs[0], owns_bias=False, norm=norm), inputs, wanted, [1e-8])
        assert torch.equal(module.bias, before)
        torch.testing.assert_close(norm.running_mean, torch.full((6,), -1.0), rtol=1e-4, atol=1e-4)
        how.apply(layer(module, inputs[0]), inputs, wanted, [1e-8])
    torch.testing.assert_close(module.bias, before + 1.0, rtol=1e-4, atol=1e-4)


def test_what_is_right_what_may_not_be_damped_and_what_cannot_be_compared_is_left() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 6), [torch.randn(5, 4)]
    weight = module.weight.detach().clone()
    how = Reconstruction(1, 5, 32768, 0)
    with torch.no_grad():
        right, wrong = module(inputs[0]), torch.randn(5, 6)
        assert how.apply(layer(module, inputs[0]), inputs, [right], [0.1]) is None
        assert how.apply(layer(module, inputs[0]), inputs, [wrong], []) is None
        assert how.apply(layer(module, inputs[0]), inputs, [torch.randn(7, 6)], [0.1]) is None
        assert torch.equal(module.weight, weight)
        assert how.apply(layer(module, inputs[0]), inputs, [wrong], [0.1]) == 0.1
    assert isinstance(layer(module, inputs[0]).contraction.input, fx.Node)

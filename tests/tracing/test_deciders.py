"""The graph follows the mode of the module whose mode the code has read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import net, tokens
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, trace

Forward = Callable[[Any, Tensor], Tensor]


def normed(self: Any, x: Tensor, training: bool) -> Tensor:
    norm = self.norm
    return F.batch_norm(
        x.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias, training
    ).transpose(1, 2)


def other_calls(self: Any, x: Tensor) -> Tensor:
    x = self.norm(self.a(x).transpose(1, 2)).transpose(1, 2)
    return self.b(x.sin() if self.norm.training else x)  # type: ignore[no-any-return]


def another_literal(self: Any, x: Tensor) -> Tensor:
    return self.b(normed(self, self.a(x), self.norm.training))  # type: ignore[no-any-return]


def both_modes(self: Any, x: Tensor) -> Tensor:
    x = normed(self, self.a(x), self.norm.training)
    return self.b(x.sin() if self.training else x)  # type: ignore[no-any-return]


def either_mode(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x).sin() if self.training and self.norm.training else self.a(x))  # type: ignore[no-any-return]


class Scaled(nn.Linear):
    """Its code is called past its `forward`."""

    def scale(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) * (3.0 if self.training else 1.0)


def by_a_method(self: Any, x: Tensor) -> Tensor:
    return self.b(self.norm.scale(self.a(x)))  # type: ignore[no-any-return]


def in_mixed_modes(model: nn.Module, training: bool) -> nn.Module:
    model.train(training).get_submodule("norm").train(not training)
    return model


def model_with(forward: Forward) -> nn.Module:
    norm = Scaled(6, 6) if forward is by_a_method else nn.BatchNorm1d(6)
    return net(forward, a=nn.Linear(4, 6), norm=norm, b=nn.Linear(6, 2))


@pytest.mark.parametrize("forward", [other_calls, another_literal, by_a_method])
@pytest.mark.parametrize("training", [True, False])
def test_a_part_in_another_mode_than_the_model_is_followed(forward: Forward, training: bool) -> None:
    model, x = model_with(forward), tokens(7, batch=3)
    traced = trace(model, tokens())
    for mode in (True, False):
        assert torch.equal(traced.train(mode)(x), model.train(mode)(x))
    expected = in_mixed_modes(model, training)(x)
    assert torch.equal(in_mixed_modes(traced, training)(x), expected)
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, x, training=True) < 1e-9
    in_mixed_modes(pruned, training)(x)


@pytest.mark.parametrize("forward", [both_modes, either_mode])
@pytest.mark.parametrize("training", [True, False])
def test_modes_that_the_same_code_reads_have_to_be_the_same(forward: Forward, training: bool) -> None:
    model, x = model_with(forward), tokens(7, batch=3)
    traced = trace(model, tokens())
    for mode in (True, False):
        assert torch.equal(traced.train(mode)(x), model.train(mode)(x))
    with pytest.raises(FxpruneError, match=r"`Net` is in .*, and `norm` in .*; the graph has what"):
        in_mixed_modes(traced, training)(x)

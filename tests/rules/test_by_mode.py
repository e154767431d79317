from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import check_invariant, check_training, net, tokens
from torch import Tensor, nn


def _normed(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.b(self.c(x) if self.training else x)  # type: ignore[no-any-return]


def test_a_value_that_is_another_in_training_carries_the_same_channels() -> None:
    model = net(_normed, a=nn.Linear(4, 8), c=nn.Linear(8, 8), b=nn.Linear(8, 2))
    check_invariant(model, tokens(), 8)
    check_training(model, tokens())


def _of_other_sizes(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.b(x[:, :1] if self.training else x)  # type: ignore[no-any-return]


def test_a_value_of_another_size_in_training_keeps_its_channels() -> None:
    graph = check_invariant(net(_of_other_sizes, a=nn.Linear(4, 8), b=nn.Linear(8, 2)), tokens(), 8)
    assert any("another value in training" in frozen.reason for frozen in graph.frozen)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.b(self.a(x).flip(2 if self.training else 1)),
        lambda self, x: self.b(self.a(x).softmax(2 if self.training else 1)),
        lambda self, x: self.b(self.a(x).unflatten(2, (4 if self.training else 2, -1)).transpose(2, 3).flatten(2)),
    ],
)
def test_what_acts_on_other_dimensions_in_training_keeps_its_channels(forward: Any) -> None:
    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    graph = check_invariant(model, tokens(), 0)
    assert any("in other places in training" in frozen.reason for frozen in graph.frozen)


def test_a_number_that_is_another_in_training_and_acts_elementwise_does_not_matter() -> None:
    model = net(lambda self, x: self.b(self.a(x) * (2 if self.training else 3)), a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    check_invariant(model, tokens(), 8)
    check_training(model, tokens())


def _averaged(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training:
        self.average.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        self.average.div_(self.average.norm())
    return self.b(x - self.average)  # type: ignore[no-any-return]


def test_what_training_writes_into_carries_the_same_channels() -> None:
    check_training(net(_averaged, a=nn.Linear(4, 8), b=nn.Linear(8, 2), average=torch.ones(8)), tokens())

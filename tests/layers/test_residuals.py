"""What is added to a layer's output is found behind what does nothing in eval."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, nn

import fxprune
from fxprune.layers.residuals import other_side


def found(forward: Any, **parts: nn.Module) -> str | None:
    model = net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), **parts)
    traced = fxprune.trace(model, torch.zeros(2, 4))
    node = next(node for node in traced.graph.nodes if node.target == "a")
    other = other_side(node, dict(traced.named_modules()))
    return None if other is None else other.name


@pytest.mark.parametrize("add", [operator.add, torch.add, Tensor.add, Tensor.add_, operator.iadd])
def test_every_way_to_add(add: Any) -> None:
    assert found(lambda self, x: add(self.a(x), self.b(x))) == "b"
    assert found(lambda self, x: add(self.b(x), self.a(x))) == "b"


def test_dropout_and_identity_are_passed_and_other_ops_are_not() -> None:
    parts = {"drop": nn.Dropout(0.5), "same": nn.Identity()}
    assert found(lambda self, x: self.b(x) + self.same(self.drop(self.a(x))), **parts) == "b"
    assert found(lambda self, x: self.b(x) + self.a(x).relu()) is None


def test_outputs_that_go_two_ways_and_scaled_sums_have_no_other_side() -> None:
    def twice(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        return (self.b(x) + y) * y

    assert found(twice) is None
    assert found(lambda self, x: torch.add(self.a(x), self.b(x), alpha=2)) is None
    assert found(lambda self, x: self.a(x) + 1) is None
    assert found(lambda self, x: self.a(x) - self.b(x)) is None

"""Sizes that no size of the input changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import net
from torch import Tensor, nn

from fxprune import FxpruneError, trace
from fxprune.tracing.checks import check_as_traced

Forward = Callable[[Any, Tensor], Tensor]


def relies_on(forward: Forward, x: Tensor, dim: int, **parts: Any) -> nn.Module:
    """A model whose code relies on a size of what `forward` gives."""

    def follow(self: Any, x: Tensor) -> Tensor:
        y = forward(self, x)
        return y * sum(1 for _ in range(y.shape[dim]))

    return trace(net(follow, **parts), x)


def is_checked(traced: nn.Module) -> bool:
    return check_as_traced in [node.target for node in traced.graph.nodes]  # type: ignore[union-attr]


CONV = nn.Conv2d(3, 8, 3)
LINEAR = nn.Linear(3, 8)
IMAGE, ROWS = torch.randn(2, 3, 8, 8), torch.randn(2, 3)

# The size in `dim` is fixed, those in the other dimensions follow the input.
CASES: list[tuple[Forward, Tensor, int, Any]] = [
    (lambda self, x: self.f(x), IMAGE, 1, CONV),
    (lambda self, x: self.f(x), ROWS, 1, LINEAR),
    (lambda self, x: F.linear(x, self.f.weight), ROWS, 1, LINEAR),
    (lambda self, x: self.f(x).relu().add_(1).clone(), ROWS, 1, LINEAR),
    (lambda self, x: nn.functional.gelu(self.f(x)) + self.f(x).sigmoid_(), ROWS, 1, LINEAR),
    (lambda self, x: self.f(x).t(), ROWS, -1, LINEAR),
    (lambda self, x: self.f(x).transpose(0, 1), ROWS, 0, LINEAR),
    (lambda self, x: self.f(x).permute(0, 2, 3, 1), IMAGE, 3, CONV),
    (lambda self, x: self.f(x).reshape(-1, 2, 4), ROWS, 1, LINEAR),
    (lambda self, x: torch.stack([self.f(x), x.repeat(1, 3)[:, :8]]), ROWS, 0, LINEAR),
    (lambda self, x: self.f(x).split(4, 1)[0].contiguous(), ROWS, 1, LINEAR),
    (lambda self, x: self.f(x).unbind(0)[0], ROWS, 0, LINEAR),
    (lambda self, x: x + self.f.weight[0], ROWS, 1, LINEAR),
]


@pytest.mark.parametrize(("forward", "x", "dim", "part"), CASES)
def test_sizes_of_weights_are_fixed_where_ops_keep_them(forward: Forward, x: Tensor, dim: int, part: Any) -> None:
    # `t` is not understood: a check too many, which costs no more than itself.
    assert is_checked(relies_on(forward, x, dim, f=part)) is (dim == -1)


@pytest.mark.parametrize(
    ("forward", "x", "dim"),
    [
        (lambda self, x: self.f(x), IMAGE, 0),
        (lambda self, x: self.f(x), IMAGE, 2),
        (lambda self, x: self.f(x).permute(0, 2, 3, 1), IMAGE, 1),
        (lambda self, x: torch.cumsum(self.f(x), 0), IMAGE, 0),
    ],
)
def test_sizes_of_the_input_are_not_fixed(forward: Forward, x: Tensor, dim: int) -> None:
    traced = relies_on(forward, x, dim, f=CONV)
    assert is_checked(traced)
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(3, 3, 9, 9))


@pytest.mark.parametrize(
    ("forward", "x", "dim"),
    [
        (lambda self, x: x.type_as(self.table), torch.randn(2, 3), 0),
        (lambda self, x: F.batch_norm(x, self.mean, self.mean), torch.randn(2, 3, 3), 2),
    ],
)
def test_sizes_that_happen_to_be_those_of_a_weight_are_not_fixed(forward: Forward, x: Tensor, dim: int) -> None:
    traced = relies_on(forward, x, dim, table=torch.zeros(2, 3), mean=torch.ones(3))
    assert is_checked(traced)

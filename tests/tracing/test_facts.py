"""What a model's code asks besides sizes and values is noted, and torch answers as before afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, nn

from fxprune import trace
from fxprune.errors import FxpruneError
from fxprune.tracing.facts import _compared_dtypes


def by_grad_mode(self: Any, x: Tensor) -> Tensor:
    return self.a(x) if torch.is_grad_enabled() else self.a(x).relu()


def by_layout(self: Any, x: Tensor) -> Tensor:
    return self.a(x) if x.is_contiguous() else self.a(x).relu()


@pytest.mark.filterwarnings("ignore:Only the code of eval")
def test_the_question_for_the_grad_mode_is_torch_s_own_again() -> None:
    before = torch.is_grad_enabled
    trace(net(by_grad_mode, a=nn.Linear(4, 2)), torch.zeros(3, 4))
    assert torch.is_grad_enabled is before


def test_an_answer_that_a_branch_follows_is_checked() -> None:
    traced = trace(net(by_layout, a=nn.Linear(4, 4)), torch.zeros(4, 4))
    traced(torch.ones(4, 4))
    with pytest.raises(FxpruneError, match=r"is_contiguous` is False here, and was True"):
        traced(torch.ones(4, 4).t())


def test_an_answer_that_nothing_follows_is_not_checked() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x.is_contiguous()
        return self.a(x)

    model, x = net(forward, a=nn.Linear(4, 4)), torch.randn(4, 4).t()
    assert torch.equal(trace(model, torch.zeros(4, 4))(x), model(x))


def equal(x: Any) -> Any:
    return x.dtype == torch.float16


def reversed_(x: Any) -> Any:
    return torch.half != x.dtype


def among(x: Any) -> Any:
    return x.dtype in (torch.float16, torch.bfloat16)


def by_identity(x: Any) -> Any:
    kind = x.dtype
    return 1 if kind is torch.float64 else 2


def only_used(x: Any) -> Any:
    kind = x.dtype
    y = x.to(torch.float32)
    return y.to(kind) if x is not None else torch.zeros(2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("function", "compared"),
    [
        (equal, {torch.float16}),
        (reversed_, {torch.float16}),
        (among, {torch.float16, torch.bfloat16}),
        (by_identity, {torch.float64}),
        (only_used, set()),
    ],
)
def test_comparisons_are_told_from_other_uses(function: Callable[..., Any], compared: set[torch.dtype]) -> None:
    assert _compared_dtypes(function.__code__) == compared

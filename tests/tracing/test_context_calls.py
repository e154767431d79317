"""Torch's contexts are watched while a model is traced, and as they were afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, distributions, nn

from fxprune import FxpruneError, trace
from fxprune.tracing.context_calls import context_patches


def test_what_is_replaced_is_there_again_after_a_trace() -> None:
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in context_patches() if name in vars(owner)]

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            assert any(vars(owner)[name] is not value for owner, name, value in before)
            return self.a(x.float())

    trace(net(forward, a=nn.Linear(4, 2)), torch.zeros(3, 4))
    assert before
    assert all(vars(owner)[name] is value for owner, name, value in before)


@pytest.mark.parametrize(
    "use",
    [
        lambda y: distributions.Normal(y, y.abs() + 1, validate_args=True).log_prob(y * 2),
        lambda y: distributions.StudentT(y.abs() + 2, y, y.abs() + 0.1, validate_args=True).log_prob(y),
        lambda y: distributions.Categorical(logits=y).entropy(),
        lambda y: distributions.NegativeBinomial(y.abs() + 1, logits=y).mean,
        lambda y: distributions.TransformedDistribution(
            distributions.Normal(y, y.abs() + 1), [distributions.AffineTransform(1.0, y.abs() + 1)]
        ).log_prob(y),
    ],
)
def test_distributions_are_traced_past_their_checks(use: Callable[[Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return use(self.b(self.a(x).relu()))

    check_invariant(net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 4)), torch.randn(3, 4), 8)
    with pytest.raises(ValueError, match="scale"):
        distributions.Normal(torch.zeros(2), -torch.ones(2), validate_args=True)


def test_the_default_dtype_is_checked_where_the_code_reads_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x).to(torch.get_default_dtype())

    model, x = net(forward, a=nn.Linear(4, 2)), torch.zeros(3, 4)
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    torch.compile(traced, backend="eager", fullgraph=True)(x)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(FxpruneError, match=r"get_default_dtype\(\)` is torch.float64 here, and was torch.float32"):
            traced(x)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_seed_is_drawn_anew_in_each_call() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training:
            self.seed = int(torch.seed() % 2**60)
            torch.manual_seed(self.seed)
        return torch.dropout(self.a(x), 0.5, self.training)

    model, x = net(forward, a=nn.Linear(4, 64)), torch.ones(2, 4)
    traced = trace(model, x).train()
    assert not torch.equal(traced(x), traced(x))
    assert traced(torch.ones(3, 4)).shape == (3, 64)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    traced.eval()(x)
    assert torch.equal(torch.rand(3), expected)

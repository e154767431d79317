"""Checks of what the values of the input decide are traced past; all else that depends on them is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net, tokens
from torch import Tensor, nn

from fxprune import FxpruneError, trace

CHECKS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "_check of a number of entries": lambda x, mask: torch._check_tensor_all(x[mask].numel() == mask.sum()),
    "_check with the unknown last": lambda x, mask: torch._check_tensor_all(mask.sum() == x[mask].numel()),
    "_check of a size": lambda x, mask: torch._check(x[mask].shape[0] % 1 == 0),
    "_check_with": lambda x, mask: torch._check_with(ValueError, x.masked_select(mask).size(0) >= 0, lambda: "no"),
    "_check_tensor_all": lambda x, mask: torch._check_tensor_all(mask == mask, lambda: "no"),
    "_check_value": lambda x, mask: torch._check_value(2 * x[mask].numel() >= 0),
    "_assert": lambda x, mask: torch._assert((x == x).all(), "no"),
    "_assert_async": lambda x, mask: torch._assert_async((x == x).all(), "no"),
    "a check of a size": lambda x, mask: torch._check(x.shape[1] > 1),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_computes_nothing(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        CHECKS[name](h, h > 0)
        return self.b(h.relu())  # type: ignore[no-any-return]

    check_invariant(net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)), tokens(), channels=8)


def test_a_check_that_fails_for_the_example_is_an_error() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch._check(x.shape[1] > 7, lambda: "too short")
        return self.a(x)  # type: ignore[no-any-return]

    with pytest.raises(FxpruneError, match="too short"):
        trace(net(forward, a=nn.Linear(4, 8)), tokens())


COUNT = int((tokens() > 0).sum())
USES: dict[str, Callable[[Any, Tensor], Any]] = {
    "a layer": lambda self, y: self.a(y),
    "a function with another tensor": lambda self, y: self.a.weight + y,
    "a branch": lambda self, y: self.a.weight * 2 if y.shape[0] == COUNT else self.a.weight,
    "a loop": lambda self, y: [self.a.weight for _ in range(y.shape[0])],
    "a plain check": lambda self, y: [None for _ in "a" if y.numel() == COUNT],
}


@pytest.mark.parametrize("name", USES)
def test_what_needs_to_know_it_is_an_error_that_says_what_is_unknown(name: str) -> None:
    model = net(lambda self, x: USES[name](self, x[x > 0]), a=nn.Linear(4, 8))
    with pytest.raises(FxpruneError, match="depends on the values of the input"):
        trace(model, tokens())

"""A part that is told another part's mode is in the same mode, or the graph refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import net, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import FxpruneError, trace

Inner = Callable[[Any, Tensor, Any], Any]


def told(self: Any, x: Tensor, flag: Any) -> Tensor:
    x = self.a(x)
    return F.dropout(x.sin() if flag else x, 0.0, self.training)


def told_a_number(self: Any, x: Tensor, flag: Any) -> Tensor:
    return self.a(x) * (2.0 if flag else 1.0) + (0.5 if self.training else 0.25)  # type: ignore[no-any-return]


def and_its_own(self: Any, x: Tensor, flag: Any) -> Tensor:
    return self.a(x).sin() if flag and self.training else self.a(x)  # type: ignore[no-any-return]


def or_its_own(self: Any, x: Tensor, flag: Any) -> Tensor:
    return self.a(x).sin() if flag or self.training else self.a(x)  # type: ignore[no-any-return]


def passing(self: Any, x: Tensor) -> Tensor:
    return self.b(self.inner(x, self.training))  # type: ignore[no-any-return]


def taking(self: Any, x: Tensor) -> Tensor:
    x, flag = self.inner(x, None)
    return self.b(F.dropout(x.sin() if flag else x, 0.0, self.training))  # type: ignore[no-any-return]


def from_one_to_another(self: Any, x: Tensor) -> Tensor:
    x, flag = self.other(x, None)
    return self.b(self.inner(x, flag))  # type: ignore[no-any-return]


def in_training_alone(self: Any, x: Tensor) -> Tensor:
    return self.b(self.inner(x, None) if self.training else x)  # type: ignore[no-any-return]


def tells(self: Any, x: Tensor, _: Any) -> tuple[Tensor, bool]:
    return self.a(x), self.training


def by_its_own(self: Any, x: Tensor, _: Any) -> Tensor:
    return self.a(x).sin() if self.training else self.a(x)  # type: ignore[no-any-return]


def ignoring(self: Any, x: Tensor, flag: Any) -> Tensor:
    return self.a(x).sin() if self.training else self.a(x)  # type: ignore[no-any-return]


def only_told(self: Any, x: Tensor, flag: Any) -> Tensor:
    return self.a(x).sin() if flag else self.a(x)  # type: ignore[no-any-return]


def model_with(forward: Any, inner: Inner) -> nn.Module:
    parts = {name: net(code, a=nn.Linear(4, 4)) for name, code in (("inner", inner), ("other", tells))}
    return net(forward, **parts, b=nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("forward", "inner", "apart"),
    [
        (passing, told, "inner"),
        (passing, told_a_number, "inner"),
        (passing, and_its_own, "inner"),
        (passing, or_its_own, "inner"),
        (taking, tells, "inner"),
        (from_one_to_another, told, "other"),
        (from_one_to_another, only_told, "other"),
        (in_training_alone, by_its_own, "inner"),
    ],
)
def test_parts_that_pass_on_a_mode_are_in_the_same_one(forward: Any, inner: Inner, apart: str) -> None:
    model, x = model_with(forward, inner), tokens(7)
    traced = trace(model, tokens())
    for training in (True, False):
        assert torch.equal(traced.train(training)(x), model.train(training)(x))
        traced.train(training).get_submodule(apart).train(not training)
        with pytest.raises(FxpruneError, match=r"is in (training|eval), and .* in (training|eval); the graph has what"):
            traced(x)


def test_a_part_that_follows_its_own_mode_alone_is_free() -> None:
    model, x = model_with(passing, ignoring), tokens(7)
    traced = trace(model, tokens())
    for training in (True, False):
        for made in (model, traced):
            made.train(training).get_submodule("inner").train(not training)
        assert torch.equal(traced(x), model(x))

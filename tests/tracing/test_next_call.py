"""Whether a model does the same in its next call, although it has changed what it keeps in Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from invariant import net
from torch import Tensor, nn

from fxprune import FxpruneWarning, trace


def _model(forward: Callable[..., Tensor]) -> Any:
    model: Any = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), drop=nn.Dropout(0.0))
    model.calls, model.flag, model.last, model.table, model.length = 0, False, None, None, 0
    model.kept, model.seen, model.helper = {}, [], SimpleNamespace(steps=0)
    model.numbers, model.array, model.act = iter([1.0] + [2.0] * 50), np.ones(1), nn.ReLU()
    model.c, model.d = nn.Linear(8, 8), nn.Linear(8, 8)
    model.register_buffer("empty", None)
    model.register_buffer("count", torch.tensor(0))
    return model


def counts(self: Any, x: Tensor) -> Tensor:
    x = self.a(x) * (self.calls + 1)
    self.calls += 1
    return self.b(x)  # type: ignore[no-any-return]


def initialises(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if not self.calls:
        self.a.bias.data.sub_(x.mean(0))
        self.calls = 1
    return self.b(x - self.a.bias)  # type: ignore[no-any-return]


def counts_in_a_helper(self: Any, x: Tensor) -> Tensor:
    self.helper.steps += 1
    return self.b(self.a(x) / self.helper.steps)  # type: ignore[no-any-return]


def counts_in_a_dict(self: Any, x: Tensor) -> Tensor:
    self.kept["calls"] = self.kept.get("calls", 0) + 1
    return self.b(self.a(x) * self.kept["calls"])  # type: ignore[no-any-return]


def lets_a_list_grow(self: Any, x: Tensor) -> Tensor:
    self.seen.append(0)
    return self.b(self.a(x) * len(self.seen))  # type: ignore[no-any-return]


def adds_what_was_before(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    y = x if self.last is None else x + self.last
    self.last = x.detach().mean(0)
    return self.b(y)  # type: ignore[no-any-return]


def adds_the_mean_of_all(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.seen.append(x.detach().mean(0))
    return self.b(x + torch.stack(self.seen).mean(0))  # type: ignore[no-any-return]


def asks_what_was_before(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    y = -x if self.last is not None and self.last.sum() > 0 else x
    self.last = x.detach()
    return self.b(y)  # type: ignore[no-any-return]


def does_more_in_each_third_call(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    x = self.a(x)
    return self.b(x * 2 if self.calls % 3 == 0 else x)  # type: ignore[no-any-return]


def alternates(self: Any, x: Tensor) -> Tensor:
    self.flag = not self.flag
    x = self.a(x)
    return self.b(x.relu() if self.flag else x.tanh())  # type: ignore[no-any-return]


def counts_in_training(self: Any, x: Tensor) -> Tensor:
    if self.training:
        self.calls += 1
    return self.b(self.a(x) * (1 + self.calls))  # type: ignore[no-any-return]


def lets_dropout_grow(self: Any, x: Tensor) -> Tensor:
    if self.training:
        self.calls += 1
    self.drop.p = min(0.5, 0.1 * self.calls)
    return self.b(self.drop(self.a(x)))  # type: ignore[no-any-return]


def fills_a_buffer(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.empty = x.detach().mean(0) if self.empty is None else self.empty * 0.5 + x.detach().mean(0)
    return self.b(x + self.empty)  # type: ignore[no-any-return]


def swaps_modules(self: Any, x: Tensor) -> Tensor:
    x = self.act(self.a(x))
    self.act = nn.Tanh()
    return self.b(x)  # type: ignore[no-any-return]


def takes_turns(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.c, self.d = self.d, self.c
    return self.b(self.c(x))  # type: ignore[no-any-return]


def replaces_a_parameter(self: Any, x: Tensor) -> Tensor:
    self.b.weight = nn.Parameter(self.b.weight * 0.9)
    return self.b(self.a(x))  # type: ignore[no-any-return]


def takes_the_next(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x) * next(self.numbers))  # type: ignore[no-any-return]


def counts_in_an_array(self: Any, x: Tensor) -> Tensor:
    self.array += 1
    return self.b(self.a(x) * float(self.array[0]))  # type: ignore[no-any-return]


DIFFERENT = [
    fills_a_buffer, swaps_modules, takes_turns, replaces_a_parameter, takes_the_next, counts_in_an_array,
    counts, initialises, counts_in_a_helper, counts_in_a_dict, lets_a_list_grow, adds_what_was_before,
    adds_the_mean_of_all, asks_what_was_before, does_more_in_each_third_call, alternates, counts_in_training,
    lets_dropout_grow,
]  # fmt: skip


@pytest.mark.parametrize("forward", DIFFERENT, ids=lambda each: each.__name__)
def test_what_changes_the_next_call_is_warned_of(forward: Callable[..., Tensor]) -> None:
    with pytest.warns(FxpruneWarning, match="kept from call to call is not in the graph: forward changes `.*, and "):
        trace(_model(forward).eval(), torch.randn(3, 4))


def only_counts(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    self.helper.steps = self.helper.steps + 1
    self.length = x.shape[-1]
    return self.b(self.a(x) * self.length)  # type: ignore[no-any-return]


def makes_a_table(self: Any, x: Tensor) -> Tensor:
    if not self.calls:
        self.table, self.calls = torch.arange(8.0).mul_(2), 1
    return self.b(self.a(x) * self.table)  # type: ignore[no-any-return]


def makes_a_table_for_a_size(self: Any, x: Tensor) -> Tensor:
    if self.length != x.shape[0]:
        self.table, self.length = torch.ones_like(x[:, :1]).cumsum(0), x.shape[0]
    return self.b(self.a(x) * self.table)  # type: ignore[no-any-return]


def keeps_tables_of_weights(self: Any, x: Tensor) -> Tensor:
    if "w" not in self.kept:
        self.kept["w"] = self.a.weight.detach().sum(1)
    return self.b(self.a(x) * self.kept["w"])  # type: ignore[no-any-return]


def shows_what_it_has_seen(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.last, self.seen = x.detach(), [*self.seen[-2:], x.mean()]
    return self.b(x)  # type: ignore[no-any-return]


def fills_a_buffer_with_a_table(self: Any, x: Tensor) -> Tensor:
    if self.empty is None:
        self.empty = torch.arange(8.0, dtype=x.dtype)
    return self.b(self.a(x) + self.empty)  # type: ignore[no-any-return]


def counts_in_a_buffer(self: Any, x: Tensor) -> Tensor:
    self.count = self.count + 1
    return self.b(self.a(x) * self.count)  # type: ignore[no-any-return]


SAME = [
    fills_a_buffer_with_a_table, counts_in_a_buffer, only_counts, makes_a_table, makes_a_table_for_a_size,
    keeps_tables_of_weights, shows_what_it_has_seen,
]  # fmt: skip


@pytest.mark.parametrize("forward", SAME, ids=lambda each: each.__name__)
def test_what_changes_nothing_is_not(forward: Callable[..., Tensor]) -> None:
    model, x = _model(forward).eval(), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = trace(model, x)
    for training in (False, False, True, True, False):
        assert torch.equal(traced.train(training)(x), model.train(training)(x))
        x = torch.randn(3, 4)

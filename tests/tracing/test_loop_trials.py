"""A loop is recorded with more steps before it stands for any number of them."""

from __future__ import annotations

from typing import Any

import torch
from invariant import net
from torch import Tensor, nn

from fxprune.tracing.loop_trials import unconfirmed_loops
from fxprune.tracing.runs import Runner


def unconfirmed(forward: Any, *shape: int) -> set[int]:
    runner = Runner(net(forward, a=nn.Linear(4, 4)), (torch.randn(shape),), {}, True, {})
    return unconfirmed_loops(runner, runner.record((), set()), (), set())


def plain(self: Any, x: Tensor) -> Tensor:
    return torch.stack([self.a(x[:, t]) for t in range(x.size(1))])


def by_a_table(self: Any, x: Tensor) -> Tensor:
    table = [1.0] * 5 + [2.0] * 10
    return torch.stack([self.a(x[:, t]) * table[t] for t in range(x.size(1))])


def of_a_fixed_length(self: Any, x: Tensor) -> Tensor:
    assert x.size(1) < 6
    return plain(self, x)


def over_both(self: Any, x: Tensor) -> Tensor:
    return plain(self, torch.stack([self.a(x[i]) for i in range(x.size(0))]))


def test_more_steps_that_give_the_same_graph_confirm_a_loop() -> None:
    assert unconfirmed(plain, 2, 5, 4) == set()
    assert unconfirmed(over_both, 4, 5, 4) == set()


def test_a_loop_that_goes_on_otherwise_or_cannot_is_not_confirmed() -> None:
    assert unconfirmed(by_a_table, 2, 5, 4) == {0}
    assert unconfirmed(of_a_fixed_length, 2, 5, 4) == {0}


def carried(self: Any, x: Tensor) -> Tensor:
    h = x[:, 0]
    for t in range(x.size(1)):
        h = self.a(h + x[:, t])
    return h


def from_another_first(self: Any, x: Tensor) -> Tensor:
    h = None
    for t in range(x.size(1)):
        h = self.a(x[:, t]) if h is None else self.a(h) + x[:, t]
    return h  # type: ignore[return-value]


def of_the_first(self: Any, x: Tensor) -> Tensor:
    made = [self.a(x[:, t]) for t in range(x.size(1))]
    return torch.stack([made[0], self.a(made[0])])


def test_what_a_single_step_does_not_show_is_not_confirmed() -> None:
    for forward in (carried, from_another_first, of_the_first):
        assert unconfirmed(forward, 2, 1, 4) == {0}
    assert unconfirmed(carried, 2, 2, 4) == set()
    assert unconfirmed(from_another_first, 2, 2, 4) == {0}


def test_few_steps_that_are_alike_are_confirmed() -> None:
    assert unconfirmed(plain, 2, 2, 4) == unconfirmed(plain, 2, 1, 4) == set()
    assert unconfirmed(over_both, 1, 5, 4) == set()

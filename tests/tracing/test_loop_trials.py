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


def test_few_steps_are_not_confirmed() -> None:
    assert unconfirmed(plain, 2, 2, 4) == {0}

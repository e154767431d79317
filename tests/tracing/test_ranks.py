"""Branches on how many dimensions a tensor has hold for those of the example; else the graph refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, trace
from fxprune.tracing.checks import check_rank


def by_dim(self: Any, x: Tensor) -> Tensor:
    return self.h(self.f(x if x.dim() == 2 else x.mean(1)))  # type: ignore[no-any-return]


def by_ndim(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if y.ndim > 2 else y)  # type: ignore[no-any-return]


def by_length(self: Any, x: Tensor) -> Tensor:
    return self.h(self.f(x)) * len(x.shape)  # type: ignore[no-any-return]


def all_but_last(self: Any, x: Tensor) -> Tensor:
    y = self.h(self.f(x))
    return y.reshape(*y.shape[:-1], 2, 2)  # type: ignore[no-any-return]


def unpacked(self: Any, x: Tensor) -> Tensor:
    *_, width = self.f(x).shape
    return self.h(self.f(x)) / width  # type: ignore[no-any-return]


def last_size(self: Any, x: Tensor) -> Tensor:
    return self.h(self.f(x)) + x.size(-1) + x[..., :1].numel()  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [by_dim, by_ndim, by_length, all_but_last, unpacked, last_size])
def test_inputs_of_other_ranks_are_refused_where_the_code_follows_the_rank(forward: Any) -> None:
    model, x = net(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 4)).eval(), torch.randn(4, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    assert fxprune.verify(model, pruned, torch.randn(3, 8)) < 1e-9
    for made in (trace(model, x), pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), trace(pruned, x)):
        made(x)
        with pytest.raises(FxpruneError, match=r"`x\.dim\(\)` is 3 here, and was 2 when .* `Net` follows it"):
            made(torch.randn(2, 4, 8))
    torch.compile(pruned, backend="eager", fullgraph=True)(x)
    torch.export.export(pruned, (x,))


def test_what_does_not_follow_the_rank_takes_any() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.f(x) * x.shape[0] + len(x)
        return self.h(y.flatten(1).view(x.shape[:1] + (-1,))[:, :8].view(-1, 8).relu() * 2 + y.size(0))  # type: ignore[no-any-return]

    model, x = net(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 4)).eval(), torch.randn(4, 8)
    traced = trace(model, x)
    assert check_rank not in {node.target for node in traced.graph.nodes}
    assert torch.equal(traced(torch.ones(2, 3, 8)), model(torch.ones(2, 3, 8)))


def test_sizes_of_one_that_are_left_out_change_the_rank() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool1d(self.f(x).mT, 1).squeeze()
        return self.h(y[None] if y.dim() == 1 else y)  # type: ignore[no-any-return]

    model, x = net(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 4)).eval(), torch.randn(2, 4, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    assert fxprune.verify(model, pruned, torch.randn(3, 4, 8)) < 1e-9
    with pytest.raises(FxpruneError, match=r"number_of_sizes\(.*\) == 1` is True here, and was False"):
        pruned(torch.randn(1, 4, 8))


def test_entries_of_arguments_have_ranks_too() -> None:
    def forward(self: Any, given: dict[str, Tensor], others: list[Tensor]) -> Tensor:
        x, mask = given["x"], others[0]
        return self.h(self.f(x) * (mask if mask.dim() == 2 else mask[:, 0]))  # type: ignore[no-any-return]

    model, x = net(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 4)).eval(), torch.randn(4, 8)
    traced = trace(model, ({"x": x}, [torch.ones(4, 1)]))
    with pytest.raises(FxpruneError, match=r"dim\(\)` is 3 here"):
        traced({"x": x}, [torch.zeros(4, 1, 1)])


def test_a_rank_that_training_alone_reads_is_checked_there() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.f(x)
        if self.training and y.dim() == 2:
            y = y * 2
        return self.h(y)  # type: ignore[no-any-return]

    model, x, other = net(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 4)), torch.randn(4, 8), torch.randn(2, 3, 8)
    traced = trace(model.eval(), x)
    assert torch.equal(traced(other), model(other))
    with pytest.raises(FxpruneError, match=r"`x\.dim\(\)` is 3 here"):
        traced.train()(other)


def shaped(self: Any, x: Tensor) -> Tensor:
    """As in xLSTM: the shapes of states are read, and the last state is not used."""
    x, made = self.a(x), []
    state = x.new_zeros(x.shape[0], 8, 8)
    for t in range(x.size(1)):
        q, k = self.u(x[:, t]), self.w(x[:, t])
        batch, width = k.shape
        if state.to(q.dtype).shape != (batch, width, self.w.out_features) or q.shape != k.shape:
            raise ValueError("the state has another shape")
        h = (q[:, None, :] @ state).squeeze(1)
        rows, columns = h.shape
        made.append(h.view(rows, columns) * q.shape[-1] ** -0.5)
        state = state.clone() + k[:, :, None] @ q[:, None, :]
    return self.out(torch.stack(made, dim=-2))  # type: ignore[no-any-return]


def test_ranks_that_each_step_of_a_loop_reads_leave_it_a_loop() -> None:
    parts = {"a": nn.Linear(4, 8), "u": nn.Linear(8, 8), "w": nn.Linear(8, 8), "out": nn.Linear(8, 2)}
    model = net(shaped, **parts).double()
    pruned = fxprune.prune(model, 0.7, example_inputs=torch.randn(2, 6, 4).double(), compensate=False)
    for batch, length in ((2, 6), (3, 9), (1, 2)):
        for training in (False, True):
            given = torch.randn(batch, length, 4).double()
            assert fxprune.verify(model, pruned, given, training=training) <= 1e-9

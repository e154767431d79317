"""Nodes that share memory, and nodes that fvcore counts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, fx, nn

from fxprune import trace
from fxprune.tracing.aliasing import alias_roots, used_nodes, written_attributes


def root_of_output(model: nn.Module, x: Tensor, *, follow_data: bool = True) -> fx.Node:
    """The alias root of the value that the model returns."""
    traced = trace(model, x)
    (returned,) = traced.graph.output_node().args
    assert isinstance(returned, fx.Node)
    return alias_roots(traced.graph, dict(traced.named_modules()), follow_data=follow_data)[returned]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(-1), lambda x: x.t(), lambda x: x[1:], lambda x: x.unbind()[0], lambda x: x.chunk(2)[1],
        lambda x: x.unsqueeze_(0), lambda x: x.transpose_(0, 1), lambda x: x.to(torch.float32), nn.Flatten(),
        nn.Dropout(), lambda x: x.relu_(), lambda x: x.add_(1).view(-1),
    ],
)  # fmt: skip
def test_views_and_what_is_written_in_place_share_memory_with_the_input(view: Any) -> None:
    model = nn.Sequential(view) if isinstance(view, nn.Module) else net(lambda self, x: view(x))
    assert root_of_output(model, torch.randn(2, 2)).op == "placeholder"


@pytest.mark.parametrize("op", [lambda x: x + 1, lambda x: x.relu(), lambda x: x.clone(), lambda x: x.flip(0)])
def test_results_of_other_ops_have_memory_of_their_own(op: Callable[[Tensor], Tensor]) -> None:
    assert root_of_output(net(lambda self, x: op(x)), torch.randn(2, 2)).op.startswith("call")


@pytest.mark.parametrize("follow_data", [True, False])
def test_data_shares_memory_unless_it_is_not_followed(follow_data: bool) -> None:
    root = root_of_output(net(lambda self, x: x.data), torch.randn(2), follow_data=follow_data)
    assert (root.op == "placeholder") is follow_data


def counting(self: Any, x: Tensor, hidden: bool) -> Tensor:
    (self.calls.data if hidden else self.calls).view(-1).add_(1)
    return self.a(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("hidden", [True, False])
def test_what_updates_a_state_is_used_unless_it_is_hidden(hidden: bool) -> None:
    model = net(lambda self, x: counting(self, x, hidden), a=nn.Linear(3, 2), calls=torch.zeros(1))
    traced = trace(model, torch.randn(2, 3))
    (written,) = written_attributes(traced)
    assert torch.equal(traced.get_buffer(written), torch.zeros(1))
    used = used_nodes(traced.graph, dict(traced.named_modules()))
    assert (operator.iadd in [node.target for node in used]) is not hidden


def test_what_is_written_into_something_that_is_returned_is_used() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = self.a(x)[:, 0]
        return y

    traced = trace(net(forward, a=nn.Linear(3, 3)), torch.randn(2, 3))
    assert used_nodes(traced.graph, dict(traced.named_modules())) == set(traced.graph.nodes)

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import net, tokens
from torch import Tensor, fx, nn

from fxprune import trace
from fxprune.running.regions import enter_region, exit_region, leaving_regions, region, regions_around
from fxprune.tracing.traced_module import TracedModule


def _traced() -> fx.GraphModule:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.a(x)
            with torch.no_grad():
                y = self.b(y)
        return self.c(y.float())  # type: ignore[no-any-return]

    return trace(net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)), tokens())


def test_a_graph_that_is_run_node_by_node_enters_and_leaves_its_regions() -> None:
    traced = _traced()
    assert torch.equal(fx.Interpreter(traced).run(tokens()), traced(tokens()))
    assert not torch.is_autocast_enabled("cpu")


def test_regions_are_left_if_a_node_fails() -> None:
    traced = _traced()
    traced.b = nn.Linear(3, 3)
    with pytest.raises(RuntimeError), leaving_regions():
        fx.Interpreter(traced).run(tokens())
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_each_node_has_the_regions_around_it() -> None:
    around = {str(node.target): len(regions) for node, regions in regions_around(_traced().graph).items()}
    assert {name: around[name] for name in "abc"} == {"a": 1, "b": 2, "c": 0}


def test_regions_that_are_not_nested_are_left_as_calls() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first, second = (graph.call_function(region, ("grad", enabled)) for enabled in (False, True))
    for function, argument in ((enter_region, first), (enter_region, second), (exit_region, second)):
        graph.call_function(function, (argument,))
    y = graph.call_method("mul", (x, 2))
    graph.output(y)
    traced = TracedModule.assemble(nn.Module(), graph, "Open")
    assert "with" not in traced.code
    with leaving_regions():
        assert not traced(torch.ones(2, requires_grad=True)).requires_grad
    assert torch.is_grad_enabled()

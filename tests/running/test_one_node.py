"""One node of a graph is run, whatever it calls."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxprune.running.one_node import run_node, with_values


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.add(self.linear(x), x, alpha=2)
        return y.transpose(0, 1)


def test_each_node_gives_what_it_gives_in_the_model() -> None:
    traced, x = fx.symbolic_trace(Net()), torch.randn(2, 3)
    values: dict[fx.Node, object] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op != "output":
            module = traced.get_submodule(node.target) if node.op == "call_module" else None
            values[node] = run_node(node, *with_values(node, values.__getitem__), module)
    assert torch.equal(values[node.args[0]], traced(x))
    assert {node.op for node in values} == {"placeholder", "call_module", "call_function", "call_method"}

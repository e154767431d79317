"""The target that a call gets in the graph."""

from __future__ import annotations

import torch
from invariant import net
from same_model import assert_same
from torch.nn import functional

from fxprune.tracing.tracer import trace


def test_functions_are_called_by_torch_names_of_their_arguments() -> None:
    model = net(
        lambda self, x: torch.sum(x, axis=1, keepdims=True, out=None) + functional.softmax(x, dim=1).mean(axis=0)
    )
    traced = trace(model, torch.randn(2, 3))
    assert_same(model, traced, torch.randn(4, 3))
    named = [dict(node.kwargs) for node in traced.graph.nodes if node.kwargs]
    assert {"dim": 1, "keepdim": True} in named
    assert {"dim": 0} in named

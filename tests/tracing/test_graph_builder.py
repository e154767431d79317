"""The nodes of the graph, and the constants that it needs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from invariant import net
from same_model import assert_same, make
from torch import Tensor, nn
from torch.nn import functional

from fxprune.errors import FxpruneError
from fxprune.tracing.tracer import trace


def test_a_tensor_of_unknown_origin_is_an_error_and_not_a_constant() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                y = x + 1
            return x * y

    with pytest.raises(FxpruneError, match="does not show to tracers"):
        trace(Hidden(), torch.ones(2))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.table = torch.arange(4.0)
        self.register_buffer("hidden", torch.ones(4), persistent=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.get_buffer("hidden")
        if hidden.sum() > 3 and self.table[1].item() == 1.0:
            x = x + 1
        return functional.linear(x, self.linear.weight) + self.table + hidden + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_constants_add_no_keys_and_are_evaluated_where_the_code_asks_for_them() -> None:
    model = Constants()
    traced = trace(model, torch.randn(2, 4))
    for twin in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(copy.deepcopy(traced)))):
        assert_same(model, twin, torch.randn(3, 4))


def test_a_power_of_a_negative_number_is_that_in_the_code_of_the_graph() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        signs = (-1) ** torch.arange(4) + (-2.0) ** torch.arange(4.0) + (-1) ** x.shape[0]
        return self.linear(x) * signs  # type: ignore[no-any-return]

    model = net(forward, linear=nn.Linear(4, 4))
    traced = trace(model, torch.randn(2, 4))
    for batch in (2, 3):
        x = torch.randn(batch, 4)
        assert torch.equal(traced(x), model(x))
    assert torch.equal(torch.compile(traced, backend="eager")(x), model(x))


def test_every_node_has_its_value_on_the_meta_device_and_its_module() -> None:
    traced = trace(make("test_resnet"), torch.randn(2, 3, 64, 64))
    for node in traced.graph.nodes:
        if isinstance(node.meta["value"], Tensor):
            assert node.meta["value"].is_meta
    conv = next(node for node in traced.graph.nodes if node.target == "conv1.0" or node.target == "conv1")
    assert conv.meta["value"].shape[0] == 2
    assert traced.graph.output_node().meta["value"].shape == (2, 1000)

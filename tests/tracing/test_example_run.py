"""The graph so far runs on the example."""

from __future__ import annotations

from typing import Any

import torch
from invariant import net
from torch import Tensor, nn

from fxprune.tracing.runs import Recording, Runner


def recorded(forward: Any, *inputs: Tensor, **parts: nn.Module) -> Recording:
    return Runner(net(forward, **parts).eval(), inputs, {}, True, {}, by_values=True).record((), set())


def shape_of_output(recording: Recording) -> Any:
    return next(node for node in recording.builder.graph.nodes if node.op == "output").args[0].meta["value"].shape  # type: ignore[union-attr]


def test_a_size_is_that_of_the_example_after_what_was_written_and_no_tensor_of_the_caller_changes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x[:, 0] = 1
        self.mean.add_(x.sum())
        return x[x > 0]

    x = -torch.ones(3, 4)
    norm = nn.BatchNorm1d(4)
    model = net(forward, norm=norm)
    model.register_buffer("mean", torch.zeros(()))
    recording = Runner(model.eval(), (x,), {}, True, {}, by_values=True).record((), set())
    assert shape_of_output(recording) == (3,)
    assert torch.equal(x, -torch.ones(3, 4))
    assert model.mean == 0


def test_a_layer_is_run_with_its_weights() -> None:
    layer = nn.Linear(4, 2)
    x = torch.randn(5, 4)
    recording = recorded(lambda self, x: self.a(x)[self.a(x) > 0], x, a=layer)
    assert shape_of_output(recording) == (int((layer(x) > 0).sum()),)


def test_a_region_of_the_code_is_left_as_it_is() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.a(x)
            return y[y > 0]

    recorded(forward, torch.randn(5, 4), a=nn.Linear(4, 2))
    assert not torch.is_autocast_enabled("cpu")


def test_what_was_read_before_is_not_computed_again() -> None:
    model, x = net(lambda self, x: self.a(x)[self.a(x) > 0], a=nn.Linear(4, 2)).eval(), torch.randn(5, 4)
    first = Runner(model, (x,), {}, True, {}, by_values=True).record((), set())
    again = Runner(model.to("meta"), (x.to("meta"),), {}, True, dict(first.values_read), by_values=True)
    assert shape_of_output(again.record((), set())) == shape_of_output(first)

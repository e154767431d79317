"""What a model allocates is predicted from the graph, for every plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from invariant import image, masks, net, parameter, plan_for, tokens
from torch import Tensor, nn

import fxprune
from fxprune.rules import allocations
from fxprune.running.peak import peak_activations


def conv(before: int, after: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2)


def residual(self: Any, x: Tensor) -> Tensor:
    x = self.norm(self.stem(x)).relu_()
    y = F.relu(self.a(x))
    return self.head(F.max_pool2d(x + self.b(y), 2).flatten(1))


def dense(self: Any, x: Tensor) -> Tensor:
    parts = [self.stem(x)]
    for layer in (self.a, self.b):
        parts.append(layer(torch.cat(parts, 1)))
    return self.head(torch.cat(parts, 1))


def heads(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    for _ in range(2):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q * k).softmax(-2) * v
        x = x + self.drop(self.b(self.a(self.out(y.transpose(1, 2).reshape(*x.shape[:2], 8)))))
    return self.head(x)


def views(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    left, right = x.chunk(2, 1)
    table = self.table.expand(x.shape[0], -1, -1, -1)
    return self.head(
        torch.cat([left * table, right.contiguous().flatten(2).transpose(1, 2).transpose(1, 2).view_as(left)], 1)
    )


NETS: dict[str, tuple[Any, Tensor, dict[str, Any]]] = {
    "residual": (residual, image(size=8), {"stem": conv(3, 12), "norm": nn.BatchNorm2d(12), "a": conv(12, 24),
                                            "b": conv(24, 12), "head": nn.Linear(12 * 16, 5)}),
    "dense": (dense, image(size=8), {"stem": conv(3, 8), "a": conv(8, 6), "b": conv(14, 6), "head": conv(20, 3)}),
    "heads": (heads, tokens(), {"stem": nn.Linear(4, 8), "qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8),
                                "a": nn.Linear(8, 16), "b": nn.Linear(16, 8), "drop": nn.Dropout(0.5),
                                "head": nn.Linear(8, 2)}),
    "views": (views, image(size=8), {"stem": conv(3, 8), "head": conv(8, 3), "table": parameter(1, 1, 1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_prediction_is_what_is_allocated(name: str) -> None:
    forward, inputs, parts = NETS[name]
    model = net(forward, **parts).eval()
    traced = fxprune.trace(model, inputs)
    graph = fxprune.analyze(traced)
    assert graph.memory.total == peak_activations(traced, (inputs,), {})
    for alive in masks(graph, 6):
        whole = alive | ~graph.all_but(graph.blocks) if name != "dense" else alive
        small = fxprune.rewrite(graph, plan_for(graph, whole))
        assert graph.memory(whole) == peak_activations(small, (inputs,), {}), small.code
        small = fxprune.rewrite(graph, plan_for(graph, alive))
        assert graph.memory(alive) >= peak_activations(small, (inputs,), {}), small.code


def test_a_model_that_makes_nothing_takes_nothing() -> None:
    graph = fxprune.analyze(fxprune.trace(nn.Flatten(), image()))
    assert graph.memory.total == 0


def test_what_trains_alone_takes_nothing() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.wide(x) if self.training else x)

    model = net(forward, wide=conv(3, 3), head=conv(3, 2))
    traced = fxprune.trace(model.eval(), image())
    assert fxprune.analyze(traced).memory.total == peak_activations(traced, (image(),), {})


def test_a_value_that_was_not_read_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction depends on where tensors are read last."""
    forward, inputs, parts = NETS["views"]
    traced = fxprune.trace(net(forward, **parts).eval(), inputs)
    right = fxprune.analyze(traced).memory.total
    monkeypatch.setattr(allocations, "_values", lambda graph, modules: {n: _apart(n) for n in graph.nodes})
    assert fxprune.analyze(traced).memory.total > right


def _apart(node: torch.fx.Node) -> Any:
    value = node.meta["value"]
    return torch.empty_like(value) if isinstance(value, Tensor) else value


def test_the_largest_of_moments_decides() -> None:
    model = nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 16), conv(16, 2))
    graph = fxprune.analyze(fxprune.trace(model, image(size=8, batch=1)))
    alive = np.ones(graph.num_channels, dtype=bool)
    assert graph.memory(alive) == 4 * (8 * 64 + 8 * 16)
    first, second = graph.groups
    alive[first.channels[1:]] = False
    assert graph.memory(alive) == 4 * (16 * 16 + 2 * 16)
    alive[second.channels[2:]] = False
    assert graph.memory(alive) == 4 * (64 + 16)

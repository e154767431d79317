"""Settings of layers that forward changes: the graph computes with those of each call, in eval and in training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_training, image, net
from torch import Tensor, nn

import fxprune
from fxprune import trace
from fxprune.tracing.leaf_settings import LeafSettings


def _net(forward: Callable[..., Tensor]) -> nn.Module:
    parts = {"a": nn.Conv2d(3, 8, 3, padding=1), "bn": nn.BatchNorm2d(8), "b": nn.Conv2d(8, 6, 3), "drop": nn.Dropout()}
    return net(forward, **parts, act=nn.LeakyReLU(), pool=nn.AdaptiveAvgPool2d(1), head=nn.Linear(6, 3))


def _head(self: Any, x: Tensor) -> Tensor:
    return self.head(self.b(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


def frozen(self: Any, x: Tensor) -> Tensor:
    self.bn.eval()
    return _head(self, self.bn(self.a(x)))


def frozen_by_attribute(self: Any, x: Tensor) -> Tensor:
    self.bn.training = False
    return _head(self, self.bn(self.a(x)))


def frozen_for_a_call(self: Any, x: Tensor) -> Tensor:
    training = self.training
    self.eval()
    x = self.bn(self.a(x))
    self.train(training)
    return _head(self, self.bn(x))


def always_training(self: Any, x: Tensor) -> Tensor:
    self.bn.train()
    return _head(self, self.bn(self.a(x)))


def numbers(self: Any, x: Tensor) -> Tensor:
    self.act.negative_slope, self.bn.track_running_stats = 0.5, False
    return _head(self, self.act(self.bn(self.a(x))))


def of_the_size(self: Any, x: Tensor) -> Tensor:
    self.pool.output_size = (x.shape[2] // 2, x.shape[3] // 2)
    return _head(self, self.pool(self.a(x).relu()))


def another_for_each_call(self: Any, x: Tensor) -> Tensor:
    x = self.a(x).relu()
    self.b.stride = (1, 1)
    y = _head(self, x)
    self.b.stride = (2, 2)
    return y + _head(self, x)


NETS = [
    frozen, frozen_by_attribute, frozen_for_a_call, always_training, numbers, of_the_size, another_for_each_call,
]  # fmt: skip


def check_steps(models: list[nn.Module]) -> None:
    """Outputs, buffers and gradients are the same over calls in eval, in training and in eval again."""
    for number, training in enumerate([False, False, True, True, False]):
        x, results = torch.randn(3, 3, 8, 8, dtype=torch.float64), []
        for model in models:
            torch.manual_seed(number)
            model.train(training)
            model.zero_grad()
            output = model(x)
            output.sum().backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([output.detach(), *grads, *(buffer.clone() for buffer in model.buffers())])
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("forward", NETS)
def test_a_layer_computes_with_what_forward_has_set(forward: Callable[..., Tensor]) -> None:
    model = _net(forward)
    check_training(model, image(size=8))
    check_steps([copy.deepcopy(model), trace(model, image(size=8).double())])


def test_dropout_follows_what_forward_sets() -> None:
    def dropping(self: Any, x: Tensor) -> Tensor:
        self.drop.p = 0.2
        return _head(self, self.drop(self.a(x)))

    model = _net(dropping).double()
    traced = trace(model, image(size=8).double())
    check_steps([copy.deepcopy(model), traced])
    other = _net(lambda self, x: _head(self, self.drop(self.a(x)))).double()
    other.load_state_dict(model.state_dict())
    with pytest.raises(AssertionError, match="not close"):
        check_steps([other, traced])


def test_a_setting_that_forward_puts_back_or_that_is_not_used_leaves_the_layer_one_node() -> None:
    def putting_back(self: Any, x: Tensor) -> Tensor:
        before, self.bn.eps = self.bn.eps, 0.5
        self.bn.eps = before
        self.head.eval()
        return _head(self, self.bn(self.a(x)))

    traced = trace(_net(putting_back), image())
    assert {"a", "bn", "b", "head"} == {node.target for node in traced.graph.nodes if node.op == "call_module"}


def test_what_a_module_changes_in_itself_is_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    settings = LeafSettings(model)
    model[1].eps = 0.5
    assert settings.are_changed(model[1])
    assert not settings.are_changed(model[0])
    settings.note(model[1])
    assert not settings.are_changed(model[1])
    model[0].weight = nn.Parameter(torch.zeros(2, 2))
    assert settings.are_changed(model)


def test_a_pruned_model_is_saved_and_loaded_with_its_settings(tmp_path: Any) -> None:
    model, x = _net(frozen).eval(), image(size=8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False, method="l2")
    fxprune.save(pruned, tmp_path / "pruned.safetensors")
    loaded = fxprune.load(tmp_path / "pruned.safetensors", original=model)
    assert torch.equal(loaded.train()(x), pruned.train()(x))

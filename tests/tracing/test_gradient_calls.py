"""What forward asks of autograd: the graph has the same gradients, or a warning says that it has not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import net, tokens
from torch import Tensor, nn

from fxprune import FxpruneWarning, trace


def _net(forward: Callable[..., Tensor]) -> nn.Module:
    return net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval()


def hooked(self: Any, x: Tensor) -> Tensor:
    x = self.a(x).relu()
    x.register_hook(lambda grad: grad * 3)
    return self.b(x)  # type: ignore[no-any-return]


def hooked_where_there_are_gradients(self: Any, x: Tensor) -> Tensor:
    x = self.a(x).relu()
    if x.requires_grad:
        x.register_hook(lambda grad: grad * 3)
    return self.b(x)  # type: ignore[no-any-return]


def hooked_in_training(self: Any, x: Tensor) -> Tensor:
    x = self.a(x).relu()
    if self.training:
        x.register_hook(lambda grad: grad * 3)
    return self.b(x)  # type: ignore[no-any-return]


def hooks_a_parameter(self: Any, x: Tensor) -> Tensor:
    self.a.weight.register_post_accumulate_grad_hook(lambda weight: weight.grad.mul_(2))
    return self.b(self.a(x))  # type: ignore[no-any-return]


def freezes(self: Any, x: Tensor) -> Tensor:
    self.a.requires_grad_(False)
    return self.b(self.a(x))  # type: ignore[no-any-return]


def freezes_by_attribute(self: Any, x: Tensor) -> Tensor:
    self.a.weight.requires_grad = False
    return self.b(self.a(x))  # type: ignore[no-any-return]


def scales_by_the_last_gradient(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.b(x if self.a.weight.grad is None else x * self.a.weight.grad.norm())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "match"),
    [
        (hooked, r"puts a hook on the gradient of a tensor \(`register_hook`\)"),
        (hooked_where_there_are_gradients, "puts a hook"),
        (hooked_in_training, "puts a hook"),
        (hooks_a_parameter, "`register_post_accumulate_grad_hook`"),
        (freezes, "freezes a parameter"),
        (freezes_by_attribute, "freezes a parameter"),
        (scales_by_the_last_gradient, "reads the gradient of a parameter from an earlier step"),
    ],
)
def test_other_gradients_are_warned_of(forward: Callable[..., Tensor], match: str) -> None:
    with pytest.warns(FxpruneWarning, match=f"Gradients in training are not those of the model: .*{match}"):
        trace(_net(forward), tokens())


def retains(self: Any, x: Tensor) -> Tensor:
    x = self.a(x.detach().requires_grad_())
    x.retain_grad()
    self.zero_grad()
    self.b.requires_grad_(True)
    return self.b(x)  # type: ignore[no-any-return]


def test_what_only_callers_see_is_passed_over() -> None:
    model = _net(retains)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = trace(model, tokens())
    for each in (model, traced):
        each(tokens()).sum().backward()
    assert torch.equal(traced.a.weight.grad, model.a.weight.grad)  # type: ignore[arg-type, union-attr]


class Block(nn.Sequential):
    pass


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_of_layers_are_kept_and_those_of_blocks_are_warned_of(register: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), Block(nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 2))

    def triple(module: nn.Module, grads: Any, *_: Any) -> Any:
        return (grads[0] * 3,)

    getattr(model[2], register)(triple)
    original = copy.deepcopy(model)
    traced = trace(model, tokens())
    for each in (original, traced):
        each(tokens()).sum().backward()
    for parameter, twin in zip(original.parameters(), traced.parameters(), strict=True):
        torch.testing.assert_close(twin.grad, parameter.grad)
    getattr(model[1], register)(triple)
    with pytest.warns(FxpruneWarning, match="the backward hooks of `1` are not in the graph"):
        trace(model, tokens())


def test_the_graph_warns_again_when_it_is_trained() -> None:
    model = nn.Sequential(nn.Linear(4, 8), Block(nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 2))
    model[1].register_full_backward_hook(lambda *_: None)
    with pytest.warns(FxpruneWarning):
        traced = trace(model.eval(), tokens())
    traced(tokens())
    with pytest.warns(FxpruneWarning, match="the backward hooks of `1` are not in the graph"):
        traced.train()(tokens())
    torch.compile(traced, backend="eager", fullgraph=True)(tokens())

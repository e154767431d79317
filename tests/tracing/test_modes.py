"""What a model does in training alone, or otherwise than in eval."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from invariant import check_invariant, net, tokens
from same_model import assert_same, targets
from torch import Tensor, nn
from torch.nn import functional

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.inner(x), 0.5, self.training)
        q = x.view(1, 1, -1, 4)
        x = functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)
        return functional.dropout2d(x, p=0.5, training=self.training) * (3.0 if self.training else 1.0)


def test_what_depends_on_the_mode_follows_the_mode() -> None:
    traced = trace(Modes(), torch.randn(5, 4))
    assert isinstance(traced.functional_dropout, nn.Dropout)
    assert trace_notes(traced).remarks == ()
    model = Modes()
    assert_same(model, trace(model, torch.randn(5, 4)), torch.randn(6, 4))


def test_auxiliary_heads_are_trained_and_not_run_in_eval() -> None:
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False).eval()
    traced = trace(model, torch.randn(1, 3, 64, 64))
    assert_same(model, traced, torch.randn(2, 3, 96, 96))
    assert traced.train()(torch.randn(2, 3, 64, 64)).aux_logits1.shape == (2, 1000)


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x + torch.randn_like(x) if self.training else x - self.average


def noisy(self: Any, x: Tensor) -> Tensor:
    x = self.layer(x)
    return x + torch.randn_like(x) if self.training else x


def needs_targets(self: Any, x: Tensor) -> Tensor:
    if self.training:
        raise ValueError("no targets")
    return self.layer(x)  # type: ignore[no-any-return]


class Noisy(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + torch.randn_like(self.weight) if self.training else self.weight
        return nn.functional.linear(x, weight)


class NoisyProduct(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + torch.randn_like(self.weight) if self.training else self.weight).T


@pytest.mark.parametrize("layer", [Noisy, NoisyProduct])
def test_a_layer_of_weights_of_its_own_that_runs_other_code_in_training_is_pruned_and_runs_it(layer: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), layer(8, 6), layer(6, 2))
    # Noise on what was removed is not zero, and the second layer reads it.
    check_invariant(model, torch.randn(3, 4), 8)
    assert_same(model, trace(model, torch.randn(3, 4).double()), torch.randn(5, 4).double())


def test_code_for_training_alone_is_in_a_module_of_its_own_or_in_the_graph_or_its_loss_is_warned_of() -> None:
    x = torch.randn(4, 8)
    kept = nn.Sequential(nn.Linear(8, 8), Averaging(), nn.Linear(8, 3))
    for model in (kept, net(noisy, layer=nn.Linear(8, 8))):
        traced = trace(model, x)
        assert trace_notes(traced).remarks == ()
        assert_same(model, traced, torch.randn(5, 8))
    with pytest.warns(FxpruneWarning, match="cannot be traced.*no targets"):
        traced = trace(net(needs_targets, layer=nn.Linear(8, 8)), x)
    traced.eval()(x)
    for made in (traced, copy.deepcopy(traced)):
        with pytest.warns(FxpruneWarning, match="cannot be traced.*no targets"):
            made.train()(x)


@pytest.mark.parametrize("product", [torch.mm, torch.matmul, functional.linear])
def test_a_product_with_a_weight_is_a_layer_and_one_with_a_vector_is_none(product: Any) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = product(x, self.weight)
            return x * torch.rand(1) if self.training else x

    class Iteration(Product):
        def forward(self, x: Tensor) -> Tensor:
            u = torch.mv(self.weight, torch.ones(4))
            return x / (torch.mv(self.weight, u) if self.training else u).norm()

    x = torch.randn(3, 4)
    for model, calls in ((nn.Sequential(Product()), ["0.by_mode"]), (nn.Sequential(Iteration()), ["0"])):
        traced = trace(model, x)
        assert targets(traced, "call_module") == calls
        assert_same(model, traced, x)


class Pair(nn.Module):
    """Without layers, so that it stays whole; it returns something of another kind in training."""

    def forward(self, x: Tensor) -> Any:
        return (x, x.mean()) if self.training else x


def with_a_pair(self: Any, x: Tensor) -> Tensor:
    x = self.pair(self.a(x))
    return self.b(x[0].sin() if isinstance(x, tuple) else x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("leaves", [(), ("pair",)])
def test_what_follows_a_module_that_stays_whole_and_returns_another_kind_follows_the_mode(leaves: Any) -> None:
    model, x = net(with_a_pair, a=nn.Linear(4, 8), pair=Pair(), b=nn.Linear(8, 2)), tokens(7)
    traced = trace(model, tokens(), leaves=leaves)
    for training in (True, False):
        assert torch.equal(traced.train(training)(x), model.train(training)(x))
        traced.pair.train(not training)
        with pytest.raises(FxpruneError, match="the graph has what the model does where both are in the same mode"):
            traced(x)


@pytest.mark.parametrize("look_up", [lambda m: vars(m)["training"], lambda m: m.__dict__.get("training")])
def test_a_mode_that_is_looked_up_in_a_dict_is_followed(look_up: Any) -> None:
    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * 2 if self.look_up() and vars(self)["training"] else y

        def look_up(self) -> bool:
            return bool(look_up(self))

    model, x = nn.Sequential(Looking(4, 8), nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    traced = trace(model, x)
    for training in (False, True):
        assert torch.equal(traced.train(training)(x), model.train(training)(x))

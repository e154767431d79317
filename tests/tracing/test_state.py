"""What a model keeps from call to call: tensors that the graph writes, numbers that it cannot have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneWarning, analyze, make_plan, plan_of, scores, trace
from fxprune.tracing.notes import trace_notes
from fxprune.verification import mask

# What `Stateful` shows; one test is about that.
pytestmark = pytest.mark.filterwarnings("ignore:A buffer stays as it is")


class Stateful(nn.Module):
    """A running average that forward replaces, of which `kind` tells how it is kept."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 8), nn.Linear(8, 2), kind
        if kind == "attribute":
            self.state = torch.ones(3, 8)
        else:
            self.register_buffer("state", torch.ones(1 if kind == "sized by the first call" else 3, 8))
        self.register_buffer("shown", torch.zeros(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.shown = self.a(x)
        if self.state.shape != self.shown.shape:
            self.state = torch.ones_like(self.shown)
        self.state = self.state * 0.5 + self.shown
        return self.b(self.state.relu() if self.kind != "returned" else self.state)


@pytest.mark.parametrize("kind", ["buffer", "attribute", "returned"])
def test_state_that_forward_replaces_goes_from_call_to_call(kind: str) -> None:
    model, x = Stateful(kind).eval(), torch.randn(3, 4)
    with pytest.warns(FxpruneWarning, match=r"^A buffer stays as it is: .* `Stateful` .* into `shown`"):
        traced = trace(model, x)
    assert not any("kept from call to call" in note for note in trace_notes(traced).remarks)
    assert "shown" not in traced.code
    pruned = fxprune.rewrite(graph := analyze(traced), make_plan(graph, scores(graph, "l2"), flops=0.5))
    masked = mask(model, plan_of(pruned))
    pruned = copy.deepcopy(pruned)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(traced(x), model(x))
            torch.testing.assert_close(pruned(x), masked(x))
            x = torch.randn(3, 4)
    assert torch.equal(traced.get_buffer("state" if kind != "attribute" else "_tensor_constant0"), model.state)


def test_state_that_does_not_fit_yet_is_warned_of() -> None:
    model, x = Stateful("sized by the first call").eval(), torch.randn(3, 4)
    with pytest.warns(
        FxpruneWarning, match=r"forward of `Stateful` reads `state`, of shape \(1, 8\), and puts .* \(3, 8\)"
    ):
        trace(model, x)
    model(x)
    traced = trace(model, x)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("kind", ["buffer", "attribute", "returned"])
def test_a_model_and_its_pruned_one_are_compared_in_the_same_state(kind: str, tmp_path: Path) -> None:
    model, x = Stateful(kind).eval(), torch.randn(3, 4)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    fxprune.save(pruned, tmp_path / "pruned.safetensors")
    kept = "state" if kind != "attribute" else "_tensor_constant0"
    with torch.no_grad():
        model(x)
        assert fxprune.verify(model, pruned) <= 1e-12
        for _ in range(3):
            pruned(x)
        before = pruned.get_buffer(kept).clone()
        assert fxprune.verify(model, pruned) <= 1e-12
    assert torch.equal(pruned.get_buffer(kept), before)
    loaded = fxprune.load(tmp_path / "pruned.safetensors", original=model)
    assert fxprune.verify(model, loaded) <= 1e-12
    with torch.no_grad():
        next(iter(loaded.parameters())).mul_(1.1)
    assert fxprune.verify(model, loaded) > 1e-3


def _initialised_by_data(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if not self.started:
        self.start.copy_(x.detach().mean(0))
        self.started.fill_(True)
    return self.b(x - self.start)


def test_values_that_python_reads_and_forward_writes_are_warned_of() -> None:
    parts = {"started": torch.tensor(False), "start": torch.zeros(8)}
    model, x = net(_initialised_by_data, a=nn.Linear(4, 8), b=nn.Linear(8, 2), **parts).eval(), torch.randn(3, 4)
    with pytest.warns(FxpruneWarning, match="forward of `Net` does depends on the values of `started`, into which"):
        trace(model, x)
    model(x)
    traced = trace(model, x)
    assert torch.equal(traced(2 * x), model(2 * x))


def _reads_what_training_left(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training:
        self.center = x.detach().mean(0)
        return self.b(x)
    return self.b(x - self.center)


def _reads_what_eval_left(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training:
        return self.b(x - self.center)
    self.center = x.detach().mean(0)
    return self.b(x)


@pytest.mark.parametrize("forward", [_reads_what_training_left, _reads_what_eval_left])
def test_state_that_one_mode_writes_and_the_other_reads_is_kept(forward: Callable[..., Tensor]) -> None:
    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), center=torch.ones(8))
    traced = trace(model, torch.randn(3, 4))
    for training in (False, True, False, True, False):
        x = torch.randn(5, 4)
        assert torch.equal(traced.train(training)(x), model.train(training)(x))
        assert torch.equal(traced.get_buffer("center"), model.center)


def test_a_buffer_of_fixed_size_is_written_although_nothing_is_computed_from_it() -> None:
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("loss", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if self.training:
                self.loss = y.square().mean().detach()
            return self.b(y.relu())  # type: ignore[no-any-return]

    model, x = Shown().double().eval(), torch.randn(3, 4).double()
    pruned = fxprune.prune(model, 0.6, example_inputs=x, compensate=False, method="random")
    masked = mask(model, plan_of(pruned))
    for training in (False, True):
        x = torch.randn(5, 4).double()
        torch.testing.assert_close(pruned.train(training)(x), masked.train(training)(x))
        torch.testing.assert_close(pruned.loss, masked.loss)
        assert bool(pruned.loss) == training


def _masked_steps(self: Any, x: Tensor) -> Tensor:
    x, self.state = self.a(x), self.state.to(x.device)
    for _ in range(3):
        x = torch.tanh(x * self.state)
    return self.b(x)


def _scaled_steps(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    y = torch.zeros_like(x[:, 0])
    for i in range(x.shape[1]):
        y = torch.tanh(y + x[:, i] * self.state)
    self.state = self.state * 0.5 + y.detach().mean(0)
    return self.b(y)


def _changed_before(self: Any, x: Tensor) -> Tensor:
    x = self.a(x) * self.state.mul_(0.5)
    self.state = self.state + x.detach().mean((0, 1))
    return self.b(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("forward", [_masked_steps, _scaled_steps, _changed_before])
def test_what_autograd_keeps_of_state_is_not_what_the_graph_writes(
    forward: Callable[..., Tensor], training: bool
) -> None:
    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), state=torch.rand(8) + 0.5).double().train(training)
    traced, x = trace(model, torch.randn(2, 5, 4).double()).train(training), torch.randn(3, 5, 4).double()
    gradients = []
    for each in (model, traced):
        (each(x).square().sum() + each(2 * x).square().sum()).backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert torch.equal(traced.get_buffer("state"), model.state)


def test_a_count_that_python_compares_unasked_is_warned_of() -> None:
    class Counting(nn.Linear):
        steps, rate = 0, 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.steps, self.rate = self.steps + 1, self.rate + 0.1
            return super().forward(x) * self.follow()

        def follow(self) -> float:
            return 1.0

    for follow in (lambda self: float(self.steps > 4.5), lambda self: [1.0, 1.0, 1.0, 2.0][self.steps]):
        model = nn.Sequential(Counting(4, 4))
        model[0].steps, model[0].rate = 0, 0.0
        model[0].follow = MethodType(follow, model[0])
        with pytest.warns(FxpruneWarning, match="What is kept from call to call is not in the graph"):
            trace(model, torch.randn(2, 4))
    trace(nn.Sequential(Counting(4, 4)), torch.randn(2, 4))

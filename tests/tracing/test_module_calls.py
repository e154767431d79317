"""Calls of modules with hooks, and of autograd Functions."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from same_model import assert_same, targets
from torch import Tensor, nn

import fxprune
from fxprune.running.copies import copy_module
from fxprune.tracing.tracer import trace


def test_hooks_and_parametrisations_of_leaves_go_on_working() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    model[2].register_forward_hook(lambda module, args, output: output * 2)
    assert_same(model, trace(model, torch.randn(2, 4)), torch.randn(3, 4))


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_learns_in_training_as_in_the_model(norm: Any) -> None:
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), norm(nn.ConvTranspose2d(4, 2, 3))).eval()
    x = torch.randn(2, 3, 6, 6)
    before = copy.deepcopy(model.state_dict())
    traced = pickle.loads(pickle.dumps(trace(model, x)))
    assert torch.equal(traced(x), model(x))
    for _ in range(2):
        assert torch.equal(traced.train()(x), model.train()(x))
    assert list(traced.state_dict()) == list(before)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in traced.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in traced.state_dict().items())


class Reversible(torch.autograd.Function):
    """The inputs of each pair of modules are computed back from the outputs, as in a RevNet."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pairs: Any) -> Tensor:
        left, right = x.chunk(2, -1)
        with torch.no_grad():
            for f, g in pairs:
                left = left + f(right)
                right = right + g(left)
        ctx.outputs, ctx.pairs = (left.detach(), right.detach()), pairs
        return torch.cat([left.detach(), right.detach()], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        left, right = ctx.outputs
        of_left, of_right = grad.chunk(2, -1)
        for f, g in reversed(ctx.pairs):
            right, of_left = Reversible.back(g, left, right, of_left, of_right)
            left, of_right = Reversible.back(f, right, left, of_right, of_left)
        return torch.cat([of_left, of_right], -1), None

    @staticmethod
    def back(
        module: nn.Module, given: Tensor, made: Tensor, of_given: Tensor, of_made: Tensor
    ) -> tuple[Tensor, Tensor]:
        given = given.detach().requires_grad_()
        with torch.enable_grad():
            added = module(given)
        torch.autograd.backward(added, of_made)
        assert given.grad is not None
        return made - added.detach(), of_given + given.grad


class ReversibleNet(nn.Module):
    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        wide = [nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(4)]
        self.pairs = nn.ModuleList(nn.ModuleList(wide[i : i + 2]) for i in (0, 2))
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> Tensor:
        pairs = [[f.__call__, lambda y, g=g: g(y)] for f, g in self.pairs] if self.wrapped else self.pairs  # type: ignore[misc]
        return self.b(Reversible.apply(self.a(x), pairs))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_function_that_is_given_modules_is_traced_as_what_it_computes(wrapped: bool) -> None:
    model, x = ReversibleNet(wrapped), torch.randn(5, 3)
    graph = check_invariant(model, x, 8 + 4 * 6)
    assert any("`Reversible` in the model itself runs modules" in remark for remark in graph.remarks)
    traced = trace(model, x.double())
    for candidate in (model, traced):
        candidate(x.double()).square().sum().backward()
    for (name, parameter), twin in zip(model.named_parameters(), traced.parameters(), strict=True):
        torch.testing.assert_close(twin.grad, parameter.grad, msg=name)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(20, 3)

    def both(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))


class FilledByAClosureOverSelf(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}
        for number, layer in enumerate([self.first, self.second]):
            layer.register_forward_hook(self.keep(number))

    def keep(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.seen[number] = output

        return hook

    def forward(self, x: Tensor) -> Tensor:
        self.second(self.first(x).relu())
        return self.both(self.seen[0], self.seen[1])


class FilledByAMethod(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.first.register_forward_hook(self.hook)
        self.second.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.clear()
        self.second(self.first(x).relu())
        return self.both(*self.seen)


class FilledThroughALocalDict(Net):
    def __init__(self) -> None:
        super().__init__()
        seen: dict[str, Tensor] = {}
        self.first.register_forward_hook(lambda module, args, output: seen.__setitem__("first", output))
        self.second.register_forward_hook(lambda module, args, output: self.both(seen["first"], output))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class KeptInAVariable(Net):
    def __init__(self) -> None:
        super().__init__()
        seen: Any = None

        def write(module: nn.Module, args: Any, output: Tensor) -> None:
            nonlocal seen
            seen = output

        def read(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return self.both(seen, output)

        self.first.register_forward_hook(write)
        self.second.register_forward_hook(read)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class ChangesInputsAndOutputs(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.between = nn.Identity()
        self.between.register_forward_pre_hook(lambda module, args: (args[0] * self.scale,))
        self.second.register_forward_pre_hook(lambda module, args, kwargs: (args, {}), with_kwargs=True)
        self.first.register_forward_hook(lambda module, args, output: output.relu())

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.both(y, self.second(self.between(y)))


class CallsFunctionsThatItKeeps(Net):
    def __init__(self) -> None:
        super().__init__()
        self.activation = lambda x: self.first(x).relu()
        self.steps = [lambda x: self.second(x)]
        before = self.head.forward
        self.head.forward = lambda x: before(x) * 2  # type: ignore[method-assign]
        self.second.forward = types.MethodType(  # type: ignore[method-assign]
            lambda layer, x: self.second._conv_forward(x, layer.weight, layer.bias), self.second
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(x)
        return self.both(y, self.steps[0](y))


NETS = [
    FilledByAClosureOverSelf,
    FilledByAMethod,
    FilledThroughALocalDict,
    KeptInAVariable,
    ChangesInputsAndOutputs,
    CallsFunctionsThatItKeeps,
]


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("make", NETS)
def test_what_hooks_and_kept_functions_compute_is_pruned(make: type[Net], run_before: bool) -> None:
    model = make().eval()
    if run_before:
        model(X)
    plain = fxprune.trace(model, X)
    assert torch.equal(plain(X[:1]), model(X[:1]))
    small = fxprune.prune(model, 0.5, example_inputs=X, compensate=False, method="l2")
    assert fxprune.verify(model, small, X) < 1e-9
    counted, before = (fxprune.count_flops(net, X) for net in (small, model))
    assert counted <= 0.5 * before
    assert torch.equal(copy.deepcopy(small)(X), small(X))


@pytest.mark.parametrize("make", NETS)
def test_the_original_computes_with_its_own_weights_and_stores_as_before(make: type[Net]) -> None:
    model = make().eval()
    expected = model(X)
    seen = copy.copy(getattr(model, "seen", None))
    small = fxprune.prune(model, 0.5, example_inputs=X, compensate=False, method="l2")
    small(X + 1)
    fxprune.verify(model, small, X)
    assert getattr(model, "seen", None) == seen
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("make", NETS)
def test_a_copy_of_a_model_uses_its_own_weights(make: type[Net]) -> None:
    model = make().eval()
    expected = model(X)
    clone = copy_module(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(clone(X), expected)


def _function(factor: float) -> type[torch.autograd.Function]:
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * factor

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0] * factor

    return Scale


def test_functions_of_the_same_name_stay_apart() -> None:
    twice, thrice = _function(2.0), _function(3.0)
    model = net(lambda self, x: thrice.apply(twice.apply(twice.apply(x))))
    traced = trace(model, torch.randn(2))
    assert_same(model, traced, torch.randn(2))
    assert len(targets(traced, "call_module")) == 3
    assert len(set(targets(traced, "call_module"))) == 2


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 3


class SignOfParent(Sign):
    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 5


class SignWithSetup(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> Any:
        ctx.factor = 7

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.factor


SIGNS: dict[type[torch.autograd.Function], Any] = {kind: kind.apply for kind in (Sign, SignOfParent, SignWithSetup)}


@pytest.mark.parametrize("kind", SIGNS)
def test_a_function_called_by_another_name_keeps_its_own_gradient(kind: type[torch.autograd.Function]) -> None:
    model = net(lambda self, x: self.b(SIGNS[kind](self.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    forward, x = kind.__dict__.get("forward"), torch.randn(3, 4)
    pruned = fxprune.prune(model, 0.99, method="l2", example_inputs=x, compensate=False)
    traced = trace(model, x)
    for each in (model, traced, pruned):
        each(x).sum().backward()
    assert torch.equal(model.a.weight.grad, traced.a.weight.grad)  # type: ignore[arg-type, union-attr]
    assert bool(pruned.get_parameter("a.weight").grad.any())  # type: ignore[union-attr]
    assert kind.__dict__.get("forward") is forward


class TracksAModule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        module.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 2, None


def test_a_function_that_is_given_a_module_writes_into_its_buffers_without_gradients() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = TracksAModule.apply(self.a(x), self)
        return self.b(y - self.average)  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), average=torch.ones(8))
    traced = trace(model, torch.randn(3, 4))
    for _ in range(3):
        x, grads = torch.randn(5, 4), []
        for each in (model, traced):
            each.zero_grad()
            output = each(x)
            output.sum().backward()
            grads.append([parameter.grad for parameter in each.parameters()])
        torch.testing.assert_close(grads[1], grads[0])
        torch.testing.assert_close(traced.get_buffer("average"), model.average)

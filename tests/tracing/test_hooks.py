"""Hooks and other functions that a model keeps: what they compute is in the graph; they write into no other model."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.running.copies import copy_module

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

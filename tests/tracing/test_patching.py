"""Code that torch shows to no tracer: helpers, caches, scripted functions, checkpoints, old constructors."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from same_model import assert_same
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import fxprune
from fxprune.tracing.tracer import trace


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.activation = torch.jit.script(swish)
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.activation(x))
        return result


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def test_a_scripted_function_that_a_module_holds_is_traced_though_it_cannot_be_copied() -> None:
    model, x = Scripted(), torch.randn(2, 3)
    assert torch.equal(trace(model, x)(x), model(x))


HELPERS = """
import functools, torch

@functools.lru_cache(None)
def positions(length):
    return torch.arange(length)[:, None] / length

def joined(windows, height, width):
    batch = int(windows.shape[0] / (height * width / 2 / 2))
    return windows.view(batch, height * width, -1)
"""


MODEL = """
import helpers_of_a_user, torch
from helpers_of_a_user import joined

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 6)

    def forward(self, x):
        batch, height, width, _ = x.shape
        windows = self.a(x).reshape(-1, 2, 2, 6)
        return joined(windows, height, width) + helpers_of_a_user.positions(height * width)
"""


def test_helpers_in_files_of_their_own_are_traced_and_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they cache must be none of what is made on the meta device, nor may `int` make a batch a constant."""
    (tmp_path / "helpers_of_a_user.py").write_text(HELPERS)
    (tmp_path / "model_of_a_user.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = importlib.import_module("model_of_a_user").Net()
    traced = trace(model, torch.randn(2, 4, 4, 8))
    assert_same(model, traced, torch.randn(3, 4, 4, 8))
    assert_same(model, trace(model, torch.randn(2, 4, 4, 8)), torch.randn(5, 4, 4, 8))


@functools.lru_cache
def _table(size: int) -> Tensor:
    return torch.arange(size).float()


def _by_decorator(function: Any) -> Any:
    cached = functools.lru_cache(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return cached(*args)

    call.cache_info = cached.cache_info  # type: ignore[attr-defined]
    return call


@_by_decorator
def _other_table(size: int) -> Tensor:
    return torch.arange(size) / 3


def _by_two_decorators(function: Any) -> Any:
    inner = _by_decorator(function)

    def call(size: int) -> Tensor:
        return inner(size)  # type: ignore[no-any-return]

    call.cache_info = inner.cache_info  # type: ignore[attr-defined]
    return call


@_by_two_decorators
def _third_table(size: int) -> Tensor:
    return torch.arange(size) / 11


class Cached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tables = _table(x.shape[1]) + _other_table(x.shape[1]) + _third_table(x.shape[1])
        return x + tables + self.method(x.shape[1]) + self.static(x.shape[1])

    @functools.lru_cache  # noqa: B019
    def method(self, size: int) -> Tensor:
        return torch.arange(size) / 5

    @staticmethod
    @functools.lru_cache
    def static(size: int) -> Tensor:
        return torch.arange(size) / 7


CACHES = (_table, _other_table, _third_table, Cached.method, Cached.static)


def test_caches_of_the_model_are_neither_read_nor_filled_by_the_trace() -> None:
    model = Cached()
    model(torch.randn(2, 3))
    before = [cache.cache_info() for cache in CACHES]
    traced = trace(model, torch.randn(2, 3))
    assert [cache.cache_info() for cache in CACHES] == before
    assert not list(traced.buffers())
    assert_same(model, traced, torch.randn(2, 5))


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_checkpointed_is_traced_as_what_it_computes(reentrant: bool) -> None:
    model = net(
        lambda self, x: checkpoint(lambda y: self.b(y) * x.mean(), self.a(x), use_reentrant=reentrant),
        a=nn.Linear(4, 8), b=nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
    )  # fmt: skip
    x = torch.randn(3, 4)
    assert_same(model, trace(model, x), x)
    graph = check_invariant(model, x)
    assert graph.flops.total == 3 * (4 * 8 + 8 * 8 + 2 * 8)
    assert "apply" not in vars(CheckpointFunction)


def _asks(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    kinds = (torch.LongTensor, torch.FloatTensor)
    return self.b(x * 2 if isinstance(x, kinds) and not isinstance(x, torch.IntTensor) else x)


def _makes(self: Any, x: Tensor) -> Tensor:
    scale = torch.FloatTensor(x.size(0), 1).fill_(0.5) + torch.FloatTensor(x.size()).zero_().sum(1, keepdim=True)
    return self.b(self.a(x) * scale * torch.FloatTensor([0.25]) + torch.LongTensor(1).zero_())


def _converts(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x.type(torch.DoubleTensor).type(torch.FloatTensor)) * torch.FloatTensor(x)[:, :1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_has_the_same_gradients_and_batch_norm_in_it_is_updated_once_a_step(reentrant: bool) -> None:
    def forward(self: Any, x: Tensor, wrapped: bool = True) -> Tensor:
        run: Any = functools.partial(checkpoint, use_reentrant=reentrant) if wrapped else lambda part, y: part(y)
        return self.c(run(lambda y: self.drop(self.norm(self.b(y)).relu()), self.a(x)))  # type: ignore[no-any-return]

    parts = {"a": nn.Linear(4, 8), "b": nn.Linear(8, 8), "norm": nn.BatchNorm1d(8), "drop": nn.Dropout(0.3)}
    model, x = net(forward, **parts, c=nn.Linear(8, 2)), torch.randn(6, 4)
    plain, traced = copy.deepcopy(model), trace(model, x)
    for _ in range(2):
        for made, more in ((model, {}), (plain, {"wrapped": False}), (traced, {})):
            made.train().zero_grad()
            torch.manual_seed(0)
            made(x, **more).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(traced.get_parameter(name).grad, parameter.grad)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(traced.get_buffer(name), buffer)
    assert int(model.norm.num_batches_tracked) == 4


def _makes_by_class(self: Any, x: Tensor) -> Tensor:
    made = torch.Tensor(x.shape[0], 1).to(x).fill_(0.5) + Tensor(x.size()).zero_().sum(1, keepdim=True)
    return self.b(self.a(x) * made * Tensor([0.25, 0.5]).sum() + Tensor(x)[:, :1])  # type: ignore[no-any-return]


def _makes_by_numbers(self: Any, x: Tensor) -> Tensor:
    made = torch.Tensor(x.shape[0], 1).to(x.device)
    made[x[:, :1] <= 0], made[x[:, :1] > 0] = 0.5, 0.25
    return self.b(self.a(x) * made)  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [_asks, _makes, _makes_by_class, _makes_by_numbers, _converts])
def test_types_of_tensors_are_those_of_the_model(forward: Callable[..., Tensor]) -> None:
    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval(), torch.randn(5, 4)
    own = torch.FloatTensor
    traced = fxprune.trace(model, x[:3])
    assert torch.FloatTensor is own
    assert torch.equal(traced(x), model(x))
    pruned = fxprune.prune(model, 0.5, example_inputs=x[:3], compensate=False)
    assert fxprune.verify(model, pruned) <= 1e-12
    assert torch.FloatTensor is own
    assert "__new__" not in vars(Tensor)


def test_a_tensor_made_past_torch_functions_is_refused_with_what_to_write_instead() -> None:
    kind = type("Kind", (Tensor,), {})
    model = net(lambda self, x: self.a(x) * kind(x.size(0), 1).as_subclass(Tensor).fill_(0.5), a=nn.Linear(4, 8))
    with pytest.raises(fxprune.FxpruneError, match=r"write `torch\.empty\(size\)`"):
        fxprune.trace(model, torch.randn(3, 4))


def norm_in_eval(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.norm.eval()
    return self.b(self.norm(x))  # type: ignore[no-any-return]


def norm_in_training(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    self.norm.train()
    return self.b(self.norm(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [norm_in_eval, norm_in_training])
@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_forward_sets_is_that_of_the_graph(forward: Callable[..., Tensor], training: bool) -> None:
    model, x = net(forward, a=nn.Linear(4, 8), norm=nn.BatchNorm1d(8), b=nn.Linear(8, 2)), torch.randn(3, 4)
    traced = trace(model, x)
    assert torch.equal(traced.train(training)(x), model.train(training)(x))


def test_a_file_that_is_there_under_two_names_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(lambda self, x: self.a(x).reshape(len(x), -1), a=nn.Linear(4, 4)), torch.randn(2, 3, 4)
    monkeypatch.setitem(sys.modules, f"{__name__}.again", sys.modules[__name__])
    before = dict(globals())
    trace(model, x)
    assert dict(globals()) == before

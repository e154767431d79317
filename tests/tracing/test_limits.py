"""Limits of types that the code reads from tensors are those of the type that the graph runs in."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, finfo, nn

import fxprune
from fxprune.tracing.limits import limit_of

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)
        self.named = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        return next(parameter.dtype for parameter in self.parameters())


def added(self: Any, y: Tensor, m: Tensor) -> Tensor:
    return y + (1 - m) * torch.finfo(y.dtype).min


def filled(self: Any, y: Tensor, m: Tensor) -> Tensor:
    return y.masked_fill(m == 0, torch.finfo(y.dtype).min).softmax(-1)


def computed(self: Any, y: Tensor, m: Tensor) -> Tensor:
    limits = torch.finfo(y.dtype)
    return y.clamp(-limits.max / 2, abs(limits.min) * 0.5) + (1.0 - m.to(y.dtype)) * -(limits.max / 2 - 1000)


def divided(self: Any, y: Tensor, m: Tensor) -> Tensor:
    return y.relu() / (y.abs().sum(-1, keepdim=True) + min(torch.finfo(y.dtype).eps, 1e-2) + finfo(y.dtype).tiny)


def in_tensors(self: Any, y: Tensor, m: Tensor) -> Tensor:
    dtype = y.dtype
    least = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    most = torch.tensor(finfo(dtype).max, dtype=dtype)
    y = torch.where(m == 0, least, y)
    y[..., 0] = torch.finfo(dtype).eps
    return torch.minimum(y, most)


def helper(mask: Tensor, dtype: torch.dtype) -> Tensor:
    inverted = 1.0 - mask.to(dtype)
    return inverted.masked_fill(inverted.bool(), torch.finfo(dtype).min)


def in_a_helper(self: Any, y: Tensor, m: Tensor) -> Tensor:
    return (y + helper(m, y.dtype)).softmax(-1)


def of_property(self: Any, y: Tensor, m: Tensor) -> Tensor:
    return (y + (1.0 - m.to(self.dtype)) * torch.finfo(self.dtype).min).softmax(-1)


def of_a_named_type(self: Any, y: Tensor, m: Tensor) -> Tensor:
    low = torch.finfo(self.named).min
    return (y.float() + (1.0 - m.to(torch.float32)) * low).to(y.dtype)


def in_bits(self: Any, y: Tensor, m: Tensor) -> Tensor:
    return y * (2.0 if torch.finfo(y.dtype).bits > 8 else 1.0) / torch.finfo(y.dtype).bits


FORWARDS = (added, filled, computed, divided, in_tensors, in_a_helper, of_property, of_a_named_type, in_bits)


def model_of(forward: Any) -> tuple[nn.Module, Tensor, Tensor]:
    class Net(Base):
        def forward(self, x: Tensor, m: Tensor) -> Tensor:
            return forward(self, self.b(self.a(x).relu()), m)  # type: ignore[no-any-return]

    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = mask[2] = 0
    return Net().eval(), torch.randn(3, 4), mask


def is_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("forward", FORWARDS)
def test_in_each_type_the_graph_has_the_limits_of_that_type(forward: Any, tmp_path: Path) -> None:
    model, x, m = model_of(forward)
    for first in TYPES[:2]:
        traced = fxprune.trace(copy.deepcopy(model).to(first), (x.to(first), m))
        for dtype in TYPES:
            expected = copy.deepcopy(model).to(dtype)(x.to(dtype), m)
            for made in (traced, pickle.loads(pickle.dumps(traced)), fxprune.trace(traced, (x.to(first), m))):
                assert is_same(copy.deepcopy(made).to(dtype)(x.to(dtype), m), expected)
    pruned = fxprune.prune(model, 0.6, example_inputs=(x, m), compensate=False)
    assert fxprune.verify(model, pruned) < 1e-9
    fxprune.save(pruned, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=model)
    for dtype in TYPES:
        small = copy.deepcopy(pruned).to(dtype)
        assert is_same(small(x.to(dtype), m), copy.deepcopy(loaded).to(dtype)(x.to(dtype), m))


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_net_that_computes_with_limits_is_pruned_correctly(forward: Any) -> None:
    model, x, m = model_of(forward)
    if forward is not added:
        check_invariant(model, (x, m))


@pytest.mark.parametrize("forward", FORWARDS)
def test_limits_are_compiled_and_exported(forward: Any) -> None:
    model, x, m = model_of(forward)
    traced, expected = fxprune.trace(model, (x, m)), model(x, m)
    assert torch.allclose(torch.compile(traced, backend="eager", fullgraph=True)(x, m), expected)
    assert torch.allclose(torch.export.export(traced, (x, m)).module()(x, m), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_same(traced(x, m), model(x, m))


def in_a_loop(self: Any, x: Tensor) -> Tensor:
    steps = [self.a(x[:, t]).clamp(min=torch.finfo(x.dtype).eps).log() for t in range(x.shape[1])]
    return self.b(torch.stack(steps, 1))  # type: ignore[no-any-return]


def in_training(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y + torch.finfo(y.dtype).eps * 1e3 if self.training else y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [in_a_loop, in_training])
def test_limits_in_a_loop_and_in_training(forward: Any) -> None:
    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 5)), torch.randn(2, 3, 4)
    traced = fxprune.trace(model, x)
    for dtype in TYPES[:2]:
        for training in (False, True):
            ours, theirs = (copy.deepcopy(each).to(dtype).train(training) for each in (traced, model))
            assert is_same(ours(x.to(dtype)), theirs(x.to(dtype)))
            longer = torch.randn(2, 5, 4, dtype=dtype)
            assert is_same(ours(longer), theirs(longer))


def test_limits_of_whole_numbers() -> None:
    def forward(self: Any, i: Tensor) -> Tensor:
        return self.b(self.a(i.clamp(max=torch.iinfo(i.dtype).max - 1)).masked_fill((i == 0)[..., None], 0.0))  # type: ignore[no-any-return]

    model, i = net(forward, a=nn.Embedding(9, 8), b=nn.Linear(8, 5)).eval(), torch.tensor([[0, 3], [8, 1]])
    traced = fxprune.trace(model, i)
    assert [node.args[1] for node in traced.graph.nodes if node.target is limit_of] == ["max"]
    for other in (i, i.int()):
        assert torch.equal(traced(other), model(other))


def test_a_limit_that_a_branch_follows_is_checked() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y.tanh() if torch.finfo(y.dtype).max < 1e6 else y)  # type: ignore[no-any-return]

    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 5)).eval(), torch.randn(2, 4)
    traced = fxprune.trace(model, x)
    assert torch.equal(traced.double()(x.double()), model.double()(x.double()))
    with pytest.raises(fxprune.FxpruneError, match=r"`the limit max of a\.dtype < 1000000\.0` is True here"):
        traced.half()(x.half())


def test_limits_that_nobody_reads_from_a_tensor_are_numbers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x) + torch.finfo().eps + torch.finfo(torch.float16).eps)  # type: ignore[no-any-return]

    traced = fxprune.trace(net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 5)), torch.randn(2, 4))
    assert not [node for node in traced.graph.nodes if node.target is limit_of]
    assert isinstance(torch.finfo(torch.float32), torch.finfo)

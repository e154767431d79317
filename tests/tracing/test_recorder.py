"""Calls that write in place, give sizes by values, or do not run on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import net
from same_model import assert_same, targets
from torch import Tensor, nn
from torch.nn import functional

from fxprune.errors import FxpruneError
from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.tracer import trace


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, :-1]
        y[..., 0].add_(1)
        z = x * 2
        z.relu_()
        torch.add(y, 1, out=y)
        z += 1
        return y + z


def test_changes_in_place_are_kept() -> None:
    traced = trace(InPlace(), torch.randn(2, 4))
    assert_same(InPlace(), traced, torch.randn(3, 4))


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


def test_sizes_that_depend_on_values_are_an_error_that_says_so_where_there_are_no_values() -> None:
    with pytest.raises(FxpruneError, match=r"size of what `getitem` gives depends on the values.*backbone"):
        trace(Selecting(), torch.randn(2, 3, device="meta"))


class SqueezedByTensors(nn.Module):
    """Takes its dimensions from a buffer, as converted models do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dims", torch.tensor([0, 2]))

    def forward(self, x: Tensor) -> Tensor:
        for dim in torch.sort(self.dims, descending=True).values:
            x = torch.squeeze(x, dim=dim)
        return torch.flip(x, (self.dims[0],))


def test_dimensions_may_be_tensors() -> None:
    traced = trace(SqueezedByTensors(), torch.randn(1, 3, 1, 4))
    assert_same(SqueezedByTensors(), traced, torch.randn(1, 2, 1, 5))


class PaddedByTensors(nn.Module):
    """Computes its padding with buffers, as audio codecs do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 4, 2)
        self.register_buffer("kernel", torch.tensor(4))
        self.register_buffer("stride", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.ceil((x.shape[-1] - self.kernel) / self.stride + 1).to(torch.int64) - 1
        missing = frames * self.stride + self.kernel - x.shape[-1]
        return self.conv(functional.pad(x, (self.kernel - self.stride, missing)))


def test_whole_numbers_in_tensors_are_computed_by_the_graph_where_torch_takes_numbers() -> None:
    model = PaddedByTensors()
    traced = trace(model, torch.randn(2, 3, 33))
    for length in (33, 34, 35, 50):
        assert_same(model, traced, torch.randn(2, 3, length))


class SoftmaxWithoutMeta(torch.autograd.Function):
    """Mixes devices where the model is not on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.masked_fill(torch.zeros(x.shape, dtype=torch.bool, device="cpu"), 0.0).softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_a_function_that_does_not_run_on_the_meta_device_is_run_on_the_example() -> None:
    model = net(lambda self, x: SoftmaxWithoutMeta.apply(self.a(x)) * 2, a=nn.Linear(3, 4))
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(5, 3))


def test_a_slice_ends_where_a_tensor_says_that_a_size_gave() -> None:
    model = net(lambda self, x: x[..., : torch.ceil(torch.as_tensor(x.shape[-1] * 2 / 3)).long()] + x[:, 0, None, :1])
    assert_same(model, trace(model, torch.randn(2, 3, 7)), torch.randn(4, 3, 11))


@pytest.mark.parametrize("join", [torch.cat, torch.stack, torch.hstack, torch.vstack, torch.dstack])
def test_all_pieces_of_a_tensor_are_joined_at_any_size(join: Callable[..., Tensor]) -> None:
    model = net(lambda self, x: join(x.split(2)))
    traced = trace(model, torch.randn(4, 3))
    assert check_as_traced not in targets(traced)
    assert_same(model, traced, torch.randn(8, 3))


def test_what_fails_and_is_caught_ties_the_graph_to_the_sizes() -> None:
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.table = nn.Linear(4, 8), nn.Parameter(torch.randn(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.f(x)
            try:
                return y + self.table  # type: ignore[no-any-return]
            except RuntimeError:
                return y + self.table.mean(0)  # type: ignore[no-any-return]

    model, x = Trying(), torch.randn(2, 5, 4)
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    with pytest.raises(FxpruneError, match=r"`f\.size\(1\)` is 3 here, and was 5"):
        traced(x[:, :3])


@pytest.mark.parametrize("ask", [lambda x: x.sum() > 0, lambda x: x.max().item() > 3, lambda x: len(x[x > 0]) > 2])
def test_a_question_that_the_tracer_refuses_is_refused_although_the_code_catches_that(ask: Any) -> None:
    class Catching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.f(x)
            with contextlib.suppress(Exception):
                if ask(x):
                    y = y + 1
            return y  # type: ignore[no-any-return]

    with pytest.raises(FxpruneError, match=r"depends on the (model's input|values of the input)"):
        trace(Catching(), torch.randn(2, 4))

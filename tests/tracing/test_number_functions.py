"""Functions of numbers, applied to sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from invariant import net
from same_model import assert_same
from torch import Tensor, nn
from torch.nn import functional

from fxprune.errors import FxpruneError
from fxprune.tracing.tracer import trace


def rounded_by_numpy(self: Any, x: Tensor) -> Tensor:
    missing = int(np.ceil(x.shape[-1] / 8) * 8) - x.shape[-1]
    half = np.floor(x.shape[-1] / 2).astype(int)
    padded = functional.pad(x, (0, missing))[..., : half + np.trunc(x.shape[1] / 2).astype("int64")]
    chunks = x.chunk(int(np.ceil(x.shape[0] / 128)), 0)
    return padded * np.rint(x.shape[1] * 0.4) + sum(chunk.mean() for chunk in chunks)


def test_sizes_that_numpy_rounds_are_rounded_at_run_time() -> None:
    model = net(rounded_by_numpy)
    assert_same(model, trace(model, torch.randn(2, 3, 13)), torch.randn(4, 7, 18))


def test_numbers_of_numpy_are_numbers() -> None:
    model = net(lambda self, x: self.a(x) * np.float64(0.5) + np.float32(2), a=nn.Linear(3, 4))
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(5, 3))


def checked_by_numpy(self: Any, x: Tensor) -> Tensor:
    size = np.array(x.shape[2:])
    if ((size % np.power(2, 2)) > 0).any():
        raise ValueError("the size must be a multiple of 4")
    return self.a(x)  # type: ignore[no-any-return]


def test_a_check_of_sizes_by_numpy_is_a_check_of_the_graph() -> None:
    model = net(checked_by_numpy, a=nn.Conv2d(3, 4, 1))
    traced = trace(model, torch.randn(2, 3, 8, 8))
    assert_same(model, traced, torch.randn(2, 3, 4, 20))
    with pytest.raises(FxpruneError, match=r"`\(x.size\(3\) % 4\) > 0` is True"):
        traced(torch.randn(2, 3, 8, 10))


COMPUTED: dict[str, Any] = {
    "another type": lambda x: tuple((np.array(x.shape[2:]) * 0.6).astype(int)),
    "a named type": lambda x: (np.array([x.shape[2], 9]) / 2).astype("int64").tolist(),
    "arithmetic": lambda x: tuple(3 * np.array(x.shape[2:]) // 2 + np.array([1, 2])),
    "floats": lambda x: [round(n) for n in (np.array([x.shape[2], 6]) / 2).tolist()],
    "entries": lambda x: (np.array(x.shape)[2] + np.array([3, x.shape[3]])[-1], 4),
}
TIED: dict[str, Any] = {
    "a function of numpy": lambda x: tuple(np.sort(np.array(x.shape[2:])) + 1),
    "rounded": lambda x: [int(n) for n in np.ceil(np.array(x.shape[2:]) / 3).tolist()],
    "the largest": lambda x: (int(np.array(x.shape[2:]).max()), 3),
    "a tensor": lambda x: tuple(torch.as_tensor(np.array(x.shape[2:]) * 2).tolist()),
    "a tensor in place": lambda x: tuple(torch.from_numpy(np.array(x.shape[2:])).tolist()),
}


def resized(size: Any) -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return functional.interpolate(self.a(x), size=tuple(size(x)))

    return net(forward, a=nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize("name", COMPUTED)
def test_arrays_of_sizes_are_computed_at_run_time(name: str) -> None:
    model = resized(COMPUTED[name])
    assert_same(model, trace(model, torch.randn(2, 3, 8, 6)), torch.randn(3, 3, 12, 10))


@pytest.mark.parametrize("name", TIED)
def test_what_else_is_made_of_arrays_of_sizes_ties_the_graph(name: str) -> None:
    model = resized(TIED[name])
    traced = trace(model, torch.randn(2, 3, 8, 6))
    assert_same(model, traced, torch.randn(3, 3, 8, 6))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(2, 3, 12, 10))


def test_an_array_of_sizes_may_be_written_into() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        size = np.array(x.shape[2:])
        size += 1
        np.multiply(size, 2, out=size)
        return functional.interpolate(self.a(x), size=tuple(int(n) for n in size))

    model = net(forward, a=nn.Conv2d(3, 4, 1))
    traced = trace(model, torch.randn(2, 3, 8, 6))
    assert_same(model, traced, torch.randn(3, 3, 8, 6))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(2, 3, 12, 10))


def in_pieces(self: Any, x: Tensor) -> Tensor:
    found = []
    for start in range(0, x.shape[1], 4):
        found.append(self.b(self.a(x[:, start : start + 4]).relu()))
    return torch.cat(found, 1)


def in_one_piece(self: Any, x: Tensor) -> Tensor:
    size, found = x.shape[1], []
    for start in range(0, x.shape[1], size):
        found.append(self.b(self.a(x[:, start : start + size]).relu()))
    return torch.cat(found, 1)


@pytest.mark.parametrize("forward", [in_pieces, in_one_piece])
@pytest.mark.parametrize("length", [4, 7, 12])
def test_a_loop_over_pieces_has_as_many_steps_as_there_are(forward: Any, length: int) -> None:
    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval()
    traced = trace(model, torch.randn(2, length, 4))
    for other in (3, 4, 8, 11):
        assert_same(model, traced, torch.randn(3, other, 4))


def test_pieces_that_are_no_loop_tie_the_graph_to_the_size() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) * len(range(0, x.shape[1], 4))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 8))
    with pytest.raises(FxpruneError, match="was 7 when the model was traced"):
        trace(model, torch.randn(2, 7, 4))(torch.randn(2, 12, 4))


def broadcast(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x = self.b(self.a(x).relu())
    shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1], (1,), 1)
    return x.expand(*shape, -1) + y.expand(*shape, -1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("sizes", [(2, 1), (2, 5), (5,)])
def test_shapes_are_broadcast_at_run_time(sizes: tuple[int, ...]) -> None:
    model = net(broadcast, a=nn.Linear(3, 8), b=nn.Linear(8, 4))
    traced = trace(model, (torch.randn(2, 5, 3), torch.randn(*sizes, 4)))
    for others in ((3, 7), (1, 7), (3, 1)):
        assert_same(model, traced, torch.randn(3, 7, 3), torch.randn(*others[-len(sizes) :], 4))


def test_shapes_of_plain_numbers_are_broadcast_as_always() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x).expand(torch.broadcast_shapes((5, 1, 4), (2, 1)))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(3, 4))
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(2, 3))

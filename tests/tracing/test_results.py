"""What calls give back: structures of tensors, and pieces of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from invariant import check_invariant, image, net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


@dataclass
class Answer:
    mean: Tensor
    parts: tuple[Tensor, ...]


class Structured(nn.Module):
    def forward(self, x: Tensor, *, others: dict[str, Tensor], scale: float = 2.0, flag: bool = False) -> Any:
        total = x + others["a"] * scale
        if flag:
            total = -total
        return {"total": total, "answer": Answer(total.mean(), total.unbind(0))}


def test_keyword_inputs_and_structured_outputs() -> None:
    inputs = {"x": torch.randn(2, 3), "others": {"a": torch.randn(2, 3)}}
    traced = trace(Structured(), inputs)
    new = {"x": torch.randn(2, 3), "others": {"a": torch.randn(2, 3)}}
    expected, found = Structured()(**new), traced(**new)
    assert torch.equal(found["total"], expected["total"])
    assert isinstance(found["answer"], Answer)
    assert torch.equal(found["answer"].parts[1], expected["answer"].parts[1])
    assert trace_notes(traced).example_inputs == ((), inputs)


class Chunked(nn.Module):
    def forward(self, x: Tensor) -> Any:
        first, second = x.chunk(2, 1)
        return [piece * first.sum() + second.sum() for piece in x.chunk(4)]


def test_chunks_are_as_many_as_in_the_trace() -> None:
    model, x = Chunked(), torch.randn(3, 4)
    traced = trace(model, x)
    assert torch.equal(traced(x[:, :3])[2], model(x[:, :3])[2])
    for other in (torch.randn(8, 4), torch.randn(2, 4), torch.randn(3, 1)):
        with pytest.raises(FxpruneError, match=r"//.* is \d here, and was \d when the model was traced"):
            traced(other)


def _all_pieces(self: Any, x: Tensor) -> Tensor:
    first, *others = self.a(x).chunk(4, 2)
    return self.b(torch.cat([first.sin(), *others], 2))  # type: ignore[no-any-return]


def _first_and_last(self: Any, x: Tensor) -> Tensor:
    pieces = self.a(x).chunk(chunks=4, dim=-2)
    return self.b(torch.cat([pieces[0].sin(), pieces[-1]], 2))  # type: ignore[no-any-return]


def _by_their_number(self: Any, x: Tensor) -> Tensor:
    pieces = self.a(x).chunk(4, 2)
    return self.b(pieces[0] * len(pieces))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "size", "right", "refused"),
    [
        (_all_pieces, 8, (4, 7, 12), (3, 5, 6, 9)), (_all_pieces, 6, (5, 9), (4, 8)),
        (_first_and_last, 8, (3, 6, 9, 12), ()), (_first_and_last, 6, (3, 8, 9, 12), ()),
        (_by_their_number, 8, (4, 12), (6,)), (_by_their_number, 6, (5,), (8,)),
    ],
)  # fmt: skip
def test_small_sizes_have_fewer_chunks(
    forward: Any, size: int, right: tuple[int, ...], refused: tuple[int, ...]
) -> None:
    model = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=size), compensate=False)
    for other in (size, *right):
        assert fxprune.verify(model, pruned, image(size=other)) < 1e-9
    for other in refused:
        with pytest.raises(FxpruneError, match=r"is \d here, and was \d when the model was traced"):
            pruned(image(size=other))


@pytest.mark.filterwarnings("ignore:Values of the input decide")
def test_nothing_is_cut_into_all_chunks() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = self.a(x)[x[:, 0] > 0]
        first, second = torch.cat([found, 2 * found]).chunk(2)
        return self.b(first - second)  # type: ignore[no-any-return]

    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)), torch.randn(6, 4).abs()
    traced = trace(model, x)
    for other in (x, -x):
        torch.testing.assert_close(traced(other), model(other))


def test_chunks_of_channels_may_be_cut_into_other_sizes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x).flatten(2)
        first, *others = y.reshape(x.size(0), -1, *x.shape[2:]).chunk(4, 1)
        return self.b(torch.cat([first.sin(), *others], 1))  # type: ignore[no-any-return]

    graph = check_invariant(net(forward, a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(12, 2, 1)), image())
    assert [len(group.channels) for group in graph.groups] == [3] * 4

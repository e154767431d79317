"""Whole numbers that go through tensors on their way from sizes to the model's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from same_model import assert_same
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.tracing.tracer import trace


class ByNumber(nn.Module):
    """Repeats its input as often as a number of its sizes says."""

    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.number = number
        self.register_buffer("two", torch.tensor([2]))

    def forward(self, x: Tensor) -> Tensor:
        sizes = torch.tensor(x.shape)
        return x.repeat(1, self.number(torch.cat([sizes, self.two])))


_NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "moved": lambda s: s.unsqueeze(0).flip(1).squeeze(0)[[1]].item(),
    "computed": lambda s: ((s[1] * 2 + 3 - s[0]) % 5 + s[2] // 2).item(),
    "divided": lambda s: torch.div(s[1] + 1, s[2], rounding_mode="trunc").item(),
    "rounded down": lambda s: torch.div(s[1] - 3, 2, rounding_mode="floor").item() + 4,
    "the product": lambda s: s[1:].prod().item(),
    "the sum, of another type": lambda s: int(s.to(torch.int32).sum()),
    "the larger one": lambda s: torch.maximum(s[0], s[1]).item(),
    "pieces": lambda s: s.split(1)[1].item() + s.unbind()[2].item(),
    "a list": lambda s: sum(torch.stack([s[:2], s[1:]]).tolist()[1]),
}


@pytest.mark.parametrize("name", _NUMBERS)
def test_the_graph_computes_with_the_numbers_alone(name: str) -> None:
    model = ByNumber(_NUMBERS[name])
    traced = trace(model, torch.randn(2, 3))
    assert not {"item", "tolist"} & {str(node.target) for node in traced.graph.nodes}
    for shape in ((2, 5), (1, 3), (4, 6)):
        assert_same(model, traced, torch.randn(shape))


_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "a quotient that may be negative": lambda s: torch.div(s[1] - 4, 2, rounding_mode="trunc").item() + 3,
    "what is no whole number": lambda s: int(s.double().mean().round()),
    "entries of another type": lambda s: s.view(torch.int32)[2].item(),
    "a bit": lambda s: (s[1] & 3).item() + 1,
    "whether it is zero": lambda s: s.bool().sum().item(),
}


@pytest.mark.parametrize("name", _TENSORS)
def test_what_is_not_known_of_a_tensor_is_read_from_it(name: str) -> None:
    model = ByNumber(_TENSORS[name])
    traced = trace(model, torch.randn(2, 3))
    assert "item" in {node.target for node in traced.graph.nodes}
    for shape in ((2, 5), (1, 3), (4, 6)):
        assert_same(model, traced, torch.randn(shape))


class Branches(nn.Module):
    def __init__(self, condition: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if self.condition(torch.tensor(x.shape)) else x


@pytest.mark.parametrize(
    ("condition", "refused"),
    [
        (lambda s: (s == 3).any(), (2, 5)), (lambda s: (s > 1).all(), (1, 3)), (lambda s: (s == 9).any(), (9, 3)),
        (lambda s: (s > 2).all(), (3, 3)), (lambda s: bool(s[1] - 2), (2, 2)), (lambda s: [0, 0, 1, 2][s[1]], (2, 2)),
    ],
)  # fmt: skip
def test_branches_on_such_numbers_are_checked(condition: Callable[[Tensor], Any], refused: tuple[int, int]) -> None:
    traced = trace(Branches(condition), torch.randn(2, 3))
    assert_same(Branches(condition), traced, torch.randn(2, 3))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(refused))


def test_the_graph_goes_through_compile_and_export_without_a_break() -> None:
    model = ByNumber(_NUMBERS["computed"])
    traced = trace(model, torch.randn(2, 3))
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    for shape in ((2, 3), (2, 5), (4, 6)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), model(x))
    program = torch.export.export(traced, (torch.randn(2, 3),)).module()
    assert torch.equal(program(x := torch.randn(2, 3)), model(x))


def test_tensors_of_numbers_alone_are_numbers_each_time() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        pieces = torch.div(x.shape[1], 2, rounding_mode="trunc")
        y = self.a(x)
        return self.b(y.view(y.shape[0], pieces, 2, 8).mean(2))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 3))
    check_invariant(model, torch.randn(2, 4, 4))
    traced = trace(model, torch.randn(2, 4, 4).double())
    for shape in ((2, 4, 4), (3, 4, 4), (2, 8, 4), (1, 10, 4)):
        x = torch.randn(shape).double()
        assert torch.equal(traced(x), model(x))

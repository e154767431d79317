"""Models whose code follows the values of their input, and how they are recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from invariant import image, net, randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.tracing.attempts import AS_EXPORTED
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace_knowing
from fxprune.verification import TOLERANCE


def hue(self: Any, x: Tensor) -> Tensor:
    """As a conversion of colours: where the first channel is the largest one, and where the second is."""
    largest, kind = x.max(1)[0], torch.zeros_like(x[:, 0])
    for channel in (0, 1):
        there = x[:, channel] == largest
        kind[there] = (4.0 + (x[:, channel] - x[:, 2])[there]) % 6
    return self.c(self.a(x) * kind.unsqueeze(1))  # type: ignore[no-any-return]


def points(self: Any, x: Tensor) -> Any:
    y = self.a(x)
    image, row, column = torch.where(x[:, 0] > 0.3)
    return self.b(y[image, :, row, column]), image


def chosen(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x).movedim(1, -1)[x[:, 0] > 0.3])  # type: ignore[no-any-return]


def experts(self: Any, x: Tensor) -> Tensor:
    """Each position goes through the layer that its values choose."""
    y = self.a(x).movedim(1, -1).flatten(0, 2)
    out, choice = torch.zeros_like(y), y[:, :2].argmax(1)
    for k, expert in enumerate((self.first, self.second)):
        (index,) = torch.where(choice == k)
        out.index_add_(0, index, expert(y[index]) * torch.ones(index.shape[0], 1).to(y))
    return self.b(out)  # type: ignore[no-any-return]


def model_of(forward: Any) -> nn.Module:
    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Linear(8, 4), "c": nn.Conv2d(8, 2, 1)}
    return randomise(net(forward, **parts, first=nn.Linear(8, 8), second=nn.Linear(8, 8)))


def images(size: int = 6, batch: int = 2) -> Tensor:
    return image(size=size, batch=batch).double()


@pytest.mark.parametrize("forward", [hue, points, chosen, experts])
def test_tensors_are_as_large_as_the_values_of_each_input_say(forward: Callable[..., Any]) -> None:
    model = model_of(forward)
    with pytest.warns(FxpruneWarning, match="Values of the input decide how large some tensors are"):
        pruned = fxprune.prune(model, 0.7, example_inputs=images(), compensate=False)
    for size, batch in ((6, 2), (8, 2), (5, 3)):
        for training in (False, True):
            assert fxprune.verify(model, pruned, images(size, batch), training=training) <= TOLERANCE


def test_the_trace_of_a_model_without_values_is_that_of_the_model_with_them() -> None:
    model = model_of(points)
    with pytest.warns(FxpruneWarning, match="how large"):
        traced = fxprune.trace(model, images())
    again = trace_knowing(model.to("meta"), images().to("meta"), trace_notes(traced).values_read)
    assert again.code == traced.code


def by_first(self: Any, x: Tensor, marks: Tensor) -> Tensor:
    y = self.a(x)
    return self.c(y * 2 if (marks > 1).any().item() else y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("largest", [1, 2])
def test_a_condition_on_the_input_is_that_of_the_example_and_others_are_refused(largest: int) -> None:
    marks, others = torch.tensor([0, largest]), torch.tensor([0, 3 - largest])
    model = model_of(by_first)
    with pytest.warns(FxpruneWarning, match="Conditions on the values of the input.*`any_1` in `Net`"):
        pruned = fxprune.prune(model, 0.7, example_inputs=(images(), marks), compensate=False)
    for training in (False, True):
        assert fxprune.verify(model, pruned, (images(8, 3), marks), training=training) <= TOLERANCE
    with pytest.raises(FxpruneError, match="the condition `any_1` on values"):
        pruned(images(), others)


COUNT = int((images() > 0.5).sum())
FOLLOWING: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "a condition that other values change": lambda self, x, y: y * 2 if x.sum() > 0 else y,
    "a condition on what the model computes": lambda self, x, y: y * 2 if y.square().sum() > 0 else y,
    "a number of tensors": lambda self, x, y: y * 2 if (x > 0.5).nonzero().shape[0] == COUNT else y,
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_code_that_follows_values_otherwise_is_refused(name: str) -> None:
    model = model_of(lambda self, x: self.c(FOLLOWING[name](self, x, self.a(x))))
    with pytest.raises(FxpruneError, match=r"values of the input cannot be part of a graph.*prune_parts"):
        fxprune.trace(model, images())


def test_a_small_part_stays_whole_rather() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    model = net(lambda self, x: self.find(self.b(self.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.ReLU(), find=Chosen())
    with pytest.warns(FxpruneWarning, match="A part stays whole: the code of `find`") as warned:
        fxprune.trace(model.double(), images())
    assert len(warned) == 1


class Router(nn.Module):
    """Sends each row to one of three experts, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3, bias=False)

    def forward(self, rows: Tensor) -> Any:
        chosen = self.layer(rows).argmax(-1)
        sizes = [int((chosen == k).sum()) for k in range(3)]
        return chosen.argsort(), sizes, {"most": max(sizes), "first": sizes[0] > 20}


class Experts(nn.Module):
    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)
        self.router, self.experts = Router(), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.up(x).relu())
        rows = x.flatten(0, 1)
        order, sizes, more = self.router(rows)
        made = [expert(part) for expert, part in zip(self.experts, rows[order].split(sizes), strict=True)]
        y = torch.zeros_like(rows).index_copy(0, order, torch.cat(made)) / more["most"]
        if self.branches and more["first"]:
            y = y * 2
        return self.head(y.view(x.shape))  # type: ignore[no-any-return]


@pytest.mark.parametrize("leaves", [(), (Router,)])
def test_numbers_from_a_part_that_stays_whole_are_those_of_each_call(leaves: Any) -> None:
    torch.manual_seed(0)
    model, x = Experts(branches=False).double().eval(), torch.randn(2, 5, 8).double()
    with nullcontext() if leaves else pytest.warns(FxpruneWarning, match="A part stays whole: the code of `router`"):
        graph = fxprune.analyze(fxprune.trace(model, x, leaves=leaves))
    pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=0.8))
    for shape in ((2, 5, 8), (3, 5, 8), (2, 7, 8), (1, 4, 8)):
        for training in (False, True):
            other = torch.randn(shape).double()
            assert fxprune.verify(model, pruned, other, training=training) <= TOLERANCE


def test_a_branch_on_what_a_part_that_stays_whole_says_is_checked() -> None:
    torch.manual_seed(0)
    model, x = Experts(branches=True).eval(), torch.randn(2, 5, 8)
    traced = fxprune.trace(model, x, leaves=(Router,))
    assert torch.equal(traced(x), model(x))
    with pytest.raises(FxpruneError, match=r"is True here, and was False"):
        traced(torch.randn(2, 5, 8).abs().repeat(1, 20, 1))


def test_a_function_that_does_not_run_without_values_is_done_as_for_export() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x).flatten(2)
        # Its kernel without values takes half precision alone.
        made = y @ self.w if torch.compiler.is_compiling() else torch.nn.functional.grouped_mm(y, self.w)
        return self.c(made.unflatten(2, x.shape[2:]))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 4, 1))
    model.w = nn.Parameter(torch.randn(2, 16, 16))
    x = torch.randn(2, 3, 4, 4)
    traced = fxprune.trace(model.eval(), x)
    assert AS_EXPORTED in trace_notes(traced).remarks
    torch.testing.assert_close(traced(x), model(x))


def test_a_model_that_fails_as_for_export_too_fails_with_its_own_error() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x.view(7, -1) if torch.compiler.is_compiling() else self.a(x) @ x

    with pytest.raises(FxpruneError, match=r"Cannot trace.*self\.a"):
        fxprune.trace(net(forward, a=nn.Conv2d(3, 8, 1)), torch.randn(2, 3, 4, 4))

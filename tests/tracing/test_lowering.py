"""Arguments of calls and what the model returns."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, nn

from fxprune.running import trees
from fxprune.tracing.checks import check_argument
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


def types_of_python(self: Any, x: Tensor) -> Tensor:
    doubles = torch.ones(2, dtype=float) + x.to(float)  # type: ignore[arg-type, call-overload]
    return doubles * torch.ones(2, dtype=int) * torch.ones(2, dtype=complex)  # type: ignore[call-overload, no-any-return]


def test_types_of_python_are_those_that_torch_takes_them_for() -> None:
    model, x = net(types_of_python), torch.randn(2)
    traced = trace(model, x)
    assert traced(x).dtype is model(x).dtype is torch.complex128
    assert torch.float64 in [node.kwargs.get("dtype") for node in traced.graph.nodes]


class Memory:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass
class ScoresAndMemory:
    scores: Tensor
    memory: Memory | None = None


class Remembers(nn.Module):
    def forward(self, x: Tensor, container: Any = ScoresAndMemory) -> Any:
        return container(scores=x.relu(), memory=Memory(x + 1))


@pytest.mark.parametrize("container", [ScoresAndMemory, dict])
def test_an_object_among_what_the_model_returns_by_name_is_left_out_and_noted(container: Any) -> None:
    x = torch.randn(2, 3)
    model = Remembers()
    model.forward = functools.partial(model.forward, container=container)  # type: ignore[method-assign]
    traced = trace(model, x)
    assert trees.tensors(traced(x))[0].equal(x.relu())
    (note,) = trace_notes(traced).remarks
    assert note.startswith("`memory` is left out of what the model returns: an object of type `")
    calls = [node for node in traced.graph.nodes if node.op != "placeholder" and node.target is not check_argument]
    assert len(calls) == 2 + (container is ScoresAndMemory)


@pytest.mark.parametrize("index", [np.arange(0, 8, 2), np.array([3, 1, 2, 0, 5, 6, 7, 4]), np.arange(8) % 3 == 0])
def test_arrays_of_numpy_are_indices(index: Any) -> None:
    width = len(np.arange(8)[index])
    model = net(lambda self, x: self.b(self.a(x)[:, index]), a=nn.Linear(4, 8), b=nn.Linear(width, 2))
    check_invariant(model, torch.randn(3, 4), 8)


@dataclass
class Entries(OrderedDict[str, Any]):
    """A dataclass whose fields are also entries, in the order in which they are set, as in transformers."""

    first: Any = None
    second: Any = None
    third: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self.__setattr__(field.name, getattr(self, field.name))

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None:
            self[name] = value
        super().__setattr__(name, value)


@pytest.mark.parametrize("later", ["first", "second", "third"])
def test_entries_that_are_set_later_come_last(later: str) -> None:
    def forward(self: Any, x: Tensor) -> Entries:
        y = self.b(self.a(x).relu())
        made = Entries(**{name: (y, y + 1) for name in ("third", "first", "second") if name != later})
        setattr(made, later, y * 2)
        return made

    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 4)), torch.randn(2, 4, dtype=torch.float64)
    check_invariant(model, x)
    for candidate in (trace(model, x), pickle.loads(pickle.dumps(trace(model, x)))):
        assert [*candidate(x)] == [*model(x)]
        assert torch.equal(candidate(x)[later], model(x)[later])
    assert [*torch.compile(trace(model, x), backend="eager")(x)] == [*model(x)]

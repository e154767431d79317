"""What models hold is copied, also where `copy.deepcopy` refuses."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.running.deepcopy import deepcopy


def _refuse(*_: Any, **__: Any) -> Any:
    raise TypeError("this is frozen")


class FrozenDict(OrderedDict[str, Any]):
    """As the configurations of diffusers, which its models hold; this one can be filled at first only."""

    def __init__(self, **values: Any) -> None:
        for key, value in values.items():
            super().__setitem__(key, value)
        vars(self)["extra"] = [1]

    __setitem__ = __delitem__ = update = setdefault = pop = _refuse


class FrozenList(list[Any]):
    """Can be filled at first only."""

    __setitem__ = append = extend = _refuse


class AttributeDict(dict[str, Any]):
    """Its keys are attributes, and others raise the wrong error."""

    __getattr__ = dict.__getitem__


class Growing(set[Any]):
    """Has no way to be made of its items."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__((first, second))


class Pair(namedtuple("Pair", "a b")):
    """Makes its second item itself."""

    __slots__ = ()

    def __new__(cls, a: Any) -> Pair:
        return super().__new__(cls, a, [a])


class Holder(nn.Module):
    """A small net that holds something."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu())
        return y


CONTAINERS: dict[str, Callable[[], Any]] = {
    "frozen dict": lambda: FrozenDict(a=[1], b=len),
    "frozen dict with a function": lambda: FrozenDict(a=[1], b=lambda x: x),
    "frozen list": lambda: FrozenList([[1], lambda x: x]),
    "dict of attributes": lambda: AttributeDict(a=[1], b=AttributeDict(c=2)),
    "set": lambda: Growing(1, 2),
    "named tuple": lambda: Pair(1),
}
LEAVES: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "python module": lambda: torch,
    "generator": lambda: (i for i in range(3)),
    "view": lambda: MappingProxyType({"a": 1}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_whose_code_refuses_is_copied_without_it(name: str) -> None:
    value = CONTAINERS[name]()
    found = deepcopy(value, {})
    assert type(found) is type(value)
    assert found is not value
    assert found == value
    assert vars(found) == vars(value) if hasattr(value, "__dict__") else True
    mutable = [item for item in (found.values() if isinstance(found, dict) else found) if isinstance(item, list)]
    assert not {id(item) for item in mutable} & {
        id(item) for item in (value.values() if isinstance(value, dict) else value)
    }


def test_tensors_in_it_are_copied_once() -> None:
    weight = torch.ones(2)
    found = deepcopy([FrozenDict(a=weight), weight], {})
    assert found[0]["a"] is found[1]
    assert found[1] is not weight


@pytest.mark.parametrize("name", LEAVES)
def test_what_has_no_copy_is_shared_and_what_is_around_it_copied(name: str) -> None:
    leaf = LEAVES[name]()
    value = SimpleNamespace(steps=[1], leaf=leaf, again=[leaf])
    found = deepcopy(value, {})
    assert found is not value
    assert found.leaf is found.again[0] is leaf
    assert found.steps == [1]
    assert found.steps is not value.steps


def test_what_has_no_copy_and_holds_weights_is_refused() -> None:
    model = nn.Linear(2, 2)
    for value in (
        (p for p in [model.weight]),
        MappingProxyType({"model": model}),
        MappingProxyType({"f": lambda: model}),
    ):
        with pytest.raises(FxpruneError, match=r"holds a \w+, which cannot be copied .*__deepcopy__"):
            deepcopy([value], {})


def test_a_random_generator_is_copied_with_its_state() -> None:
    model = Holder(torch.Generator().manual_seed(3))
    before = model.held.get_state()
    fxprune.trace(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(model.held.get_state(), before)
    assert torch.equal(torch.rand(3, generator=deepcopy(model.held, {})), torch.rand(3, generator=model.held))


@pytest.mark.parametrize("name", CONTAINERS | LEAVES)
def test_a_model_that_holds_it_is_pruned(name: str) -> None:
    model = Holder((CONTAINERS | LEAVES)[name]()).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small = fxprune.prune(model, 0.5, example_inputs=x, compensate=False, progress=False)
    assert fxprune.verify(model, small, x) <= 1e-9
    assert copy.deepcopy(small)(x).equal(small(x))

"""What a model keeps in Python: where it is found, and whether numbers are used for more than counting."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.tracing.python_state import Watched, python_state


class Helper:
    def __init__(self) -> None:
        self.steps, self.seen = 0, deque([1.0])


class Slots:
    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = 0


TOTAL = [0]


class Model(nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.count, self.rate, self.name, self.last = 0, float("nan"), "a", None
        self.table, self.helper, self.counter = {"n": 0, "rows": [1, 2]}, Helper(), Counter()
        self.inner = nn.Sequential(nn.Dropout(0.5))
        self.numbers, self.array, self.slots = iter([1, 2]), np.ones(2), Slots()
        self.register_buffer("empty", None)
        number = 0

        def hook(*_: Any) -> None:
            nonlocal number
            number += 1

        self.hook = hook

    def listed(self, seen: list[int] = [0]) -> None:  # noqa: B006
        seen[0] += 1


def _set_class() -> None:
    Model.calls += 1


def _set_global() -> None:
    TOTAL[0] += 1


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda model: setattr(model, "count", 1), "`count` of `Model`"),
        (lambda model: setattr(model, "last", torch.ones(1)), "`last` of `Model`"),
        (lambda model: setattr(model.inner[0], "p", 0.1), "`p` of `inner.0`"),
        (lambda model: model.inner.eval(), "`training` of `inner`"),
        (lambda model: model.table.update(n=1), "`table['n']` of `Model`"),
        (lambda model: model.table["rows"].append(3), "`table['rows'][2]` of `Model`"),
        (lambda model: setattr(model.helper, "steps", 1), "`helper.steps` of `Model`"),
        (lambda model: model.helper.seen.append(1), "`helper.seen[1]` of `Model`"),
        (lambda model: model.counter.update("a"), "`counter['a']` of `Model`"),
        (lambda model: next(model.numbers), "`numbers` of `Model`"),
        (lambda model: model.array.fill(3), "`array` of `Model`"),
        (lambda model: setattr(model.slots, "steps", 1), "`slots.steps` of `Model`"),
        (lambda model: setattr(model, "empty", torch.ones(1)), "`_buffers['empty']` of `Model`"),
        (lambda model: setattr(model, "inner", nn.ReLU()), "`_modules['inner']` of `Model`"),
        (lambda model: model.listed(), "`listed.__defaults__[0][0]` of the class `Model`"),
        (lambda model: model.hook(), "`hook.number` of `Model`"),
        (lambda model: _set_class(), "`calls` of the class `Model`"),
        (lambda model: _set_global(), f"`TOTAL[0]` of `{__name__}`"),
    ],
)
def test_a_change_is_found(change: Any, place: str) -> None:
    model = Model()
    before = python_state(model)
    assert python_state(model).changed_since(before) == []
    change(model)
    assert place in python_state(model).changed_since(before)


def test_a_number_that_counts_is_not_used_and_one_that_decides_is() -> None:
    for use in (lambda n: n + 1, lambda n: 1 + n, lambda n: n - 1, repr):
        number = Watched(3)
        use(number)
        assert not number.used
    for use in (lambda n: n > 2, lambda n: n % 2, lambda n: n**2, bool, lambda n: (n + 1) == 4):
        number = Watched(3)
        use(number)
        assert number.used


def test_numbers_are_watched_where_they_are() -> None:
    model = Model()
    places = ["`count` of `Model`", "`helper.steps` of `Model`", "`name` of `Model`", "`gone` of `Model`"]
    watched = python_state(model).count_on(places)
    assert [id(each) for each in watched] == [id(model.count), id(model.helper.steps)]
    assert model.count > 2**30
    assert watched[0].used
    assert not watched[1].used

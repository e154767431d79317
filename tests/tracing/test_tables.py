"""Tables that a model's code keeps outside of the model are as they were after it was traced, and good for any size."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.tracing.tracer import trace

MODEL = """
import torch
from torch import nn

TABLE, LAST, LISTED, NAMED = {}, None, [], {1: torch.ones(20)}
def by_name(n):
    if n not in TABLE:
        TABLE[n] = torch.arange(n).float()
    return TABLE[n]

def by_variable(n):
    global LAST
    if LAST is None or LAST.shape[0] < n:
        LAST = torch.arange(n).float()
    return LAST

def by_default(n, table={}):
    return table.setdefault(n, torch.arange(n).float())

def by_attribute(n):
    if n not in by_attribute.table:
        by_attribute.table[n] = torch.arange(n).float()
    return by_attribute.table[n]

by_attribute.table = {}

def memoised(function):
    table = {}
    def found(*key):
        if key not in table:
            table[key] = function(*key)
        return table[key]
    return found

@memoised
def by_decorator(n):
    return torch.arange(n).float()

class AtLeast:
    def __init__(self):
        self.memo, self.last = {}, None
    def __call__(self, n):
        if "memo" not in self.memo or self.memo["memo"][0] < n:
            self.memo["memo"] = 2 * n, torch.arange(2 * n).float()
        return self.memo["memo"][1]

class Longest(AtLeast):
    def __call__(self, n):
        if self.last is None or self.last.shape[0] < n:
            self.last = torch.arange(n).float()
        return self.last

class Longer(Longest):
    pass

by_helper, by_longest = AtLeast(), Longer()

def add(key, value):
    if key in NAMED:
        raise ValueError(key)
    NAMED[key] = value

def by_registry(n):
    return NAMED[1]

def by_list(n):
    while len(LISTED) < n:
        LISTED.append(torch.tensor(float(len(LISTED))))
    return torch.stack(LISTED[:n])

def by_new_attribute(n):
    if not hasattr(by_new_attribute, "table"):
        by_new_attribute.table = {}
    return by_new_attribute.table.setdefault(n, torch.arange(n).float())

class Net(nn.Module):
    table, last = {}, None
    def by_attribute_of_class(self, n):
        if type(self).last is None or type(self).last.shape[0] < n:
            type(self).last = torch.arange(n).float()
        return type(self).last
    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Linear(4, 8), nn.Linear(8, 2), way
    def by_class(self, n):
        if n not in self.table:
            self.table[n] = torch.arange(n).float()
        return self.table[n]
    def forward(self, x):
        way = globals()[self.way] if self.way in globals() else getattr(self, self.way)
        return self.b(torch.tanh(self.a(x)) + way(x.shape[1])[: x.shape[1], None])
"""
WAYS = (
    *("by_name", "by_variable", "by_default", "by_attribute", "by_decorator", "by_helper", "by_longest", "by_registry"),
    *("by_class", "by_attribute_of_class", "by_new_attribute", "by_list"),
)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_tables_outside_of_the_model_are_neither_read_nor_filled(
    way: str, warm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"model_with_tables_{way}_{warm}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    model: nn.Module = importlib.import_module(name).Net(way).eval()
    if warm:
        model(torch.randn(2, 5, 4))
    traced = trace(model, torch.randn(2, 5, 4))
    for length in (5, 3, 9):
        x = torch.randn(3, length, 4)
        expected = model(x)
        if way == "by_list" and length != 5:
            # A loop that goes on until a list is long enough.
            continue
        assert torch.equal(traced(x), expected)


def test_verifying_leaves_no_table_in_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = MODEL.replace("torch.arange(n).float()", "torch.arange(n, dtype=by_name.dtype)")
    typed = typed.replace("        way =", "        by_name.dtype = x.dtype\n        way =")
    (tmp_path / "model_with_typed_tables.py").write_text(typed)
    monkeypatch.syspath_prepend(tmp_path)
    model, x = importlib.import_module("model_with_typed_tables").Net("by_name").eval(), torch.randn(2, 5, 4)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False, progress=False)
    assert fxprune.verify(model, pruned, torch.randn(2, 6, 4)) <= 1e-12
    assert model(torch.randn(2, 6, 4)).dtype is torch.float32

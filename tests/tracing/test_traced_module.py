"""Copies and pickles of a traced model are complete."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from same_model import assert_same, make

from fxprune.tracing.tracer import trace


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_copies_and_pickles_are_complete(name: str) -> None:
    model = make(name, drop_rate=0.1)
    size = model.default_cfg["input_size"]  # type: ignore[index]
    traced = trace(model, torch.randn(1, *size))
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), copy.deepcopy(copy.deepcopy(traced))):
        assert_same(model, twin, torch.randn(2, *size))
        assert [node.name for node in twin.graph.nodes] == [node.name for node in traced.graph.nodes]
        assert all("value" in node.meta and "module" in node.meta for node in twin.graph.nodes)
        assert twin.meta.keys() == traced.meta.keys()
        assert not set(map(id, twin.parameters())) & set(map(id, traced.parameters()))

"""Nested values become JSON and come back with their types; anything else is refused with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune import FxpruneError
from fxprune.files.packing import pack, unpack


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, "x", True, None],
        (1, (2, [3])),
        {"a": {"b": ()}},
        {1: "one", (2, "x"): "two", None: "three"},
        {"$": "a key that packing uses itself"},
    ],
)
def test_a_value_comes_back_through_json_with_its_types(value: Any) -> None:
    tensors: dict[str, Tensor] = {}
    assert unpack(json.loads(json.dumps(pack(value, tensors, "x"))), tensors) == value
    assert not tensors


def test_tensors_lie_beside_it_as_copies() -> None:
    tensor, tensors = torch.ones(2), {}
    packed = pack({"a": (tensor, tensor[:1])}, tensors, "state")
    assert list(tensors) == ["state.a.0", "state.a.1"]
    tensor.zero_()
    assert unpack(packed, tensors)["a"][0].tolist() == [1.0, 1.0]


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(FxpruneError, match=r"^state\.a\.1 \(a set\) cannot be saved"):
        pack({"a": [1, {2}]}, {}, "state")

"""Blocks are called by the modules that own their parameters."""

from __future__ import annotations

import numpy as np

from fxprune.channels.graph import Block
from fxprune.rules.block_names import common_owner, module_of, numbered, owners


def test_a_tensor_belongs_to_a_module_and_to_those_around_it() -> None:
    assert module_of("layers.0.norm.weight") == "layers.0.norm"
    assert module_of("gain") == ""
    assert list(owners("layers.0.norm.weight")) == ["layers.0.norm", "layers.0", "layers"]
    assert list(owners("gain")) == []


def test_what_a_parametrization_computes_a_weight_from_belongs_to_the_layer() -> None:
    assert module_of("a.conv.parametrizations.weight.original0") == "a.conv"
    assert module_of("parametrizations.weight.original0") == ""
    assert list(owners("a.conv.parametrizations.weight.original0")) == ["a.conv", "a"]


def test_the_common_owner_is_the_innermost() -> None:
    assert common_owner(["a.b.weight", "a.b.bias"]) == "a.b"
    assert common_owner(["a.b.weight", "a.c.weight"]) == "a"
    assert common_owner(["a.b.weight", "gain"]) == ""


def test_blocks_of_one_name_are_numbered() -> None:
    def block(name: str) -> Block:
        return Block(name, 0, np.array([0]), (), "", (), "", (), (), 0)

    assert [each.name for each in numbered([block("a"), block("b"), block("a")])] == ["a", "b", "a#2"]

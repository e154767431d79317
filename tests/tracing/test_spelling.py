"""Text for digests and messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from fxprune.tracing.spelling import first_few, name_of, spell


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((1, [2.5, None]), "(1, (2.5, None))"),
        ({"dim": -1, "x": "a"}, "{dim: -1, x: 'a'}"),
        (slice(1, None), "slice(1, None, None)"),
        (torch.device("cpu"), "device"),
        (torch.float32, "torch.float32"),
        (torch.relu, "relu"),
        (object(), "object"),
    ],
)
def test_arguments_are_text_without_addresses(value: Any, text: str) -> None:
    assert spell(value, {}) == text


def test_nodes_have_the_names_that_they_are_known_by() -> None:
    x = fx.Graph().placeholder("x")
    assert spell([x, 1], {x: 7}) == "(%7, 1)"


def test_a_function_has_its_name_and_other_callables_that_of_their_class() -> None:
    assert name_of(torch.add) == "add"
    assert name_of(torch.nn.ReLU()) == "ReLU"


def test_the_first_few_of_a_list_are_named_and_the_others_counted() -> None:
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c", "d"], 2) == "a, b and 2 more"

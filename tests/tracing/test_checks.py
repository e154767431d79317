"""The checks that sizes and arguments are those of the trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import fx

from fxprune import FxpruneError, FxpruneWarning
from fxprune.tracing.checks import (
    check_argument,
    check_as_traced,
    check_modes,
    check_outcome,
    expected_of,
    warn_in_training,
)


@pytest.mark.parametrize(("value", "traced"), [(3, 3), (torch.tensor(3), 3), (2, True), (True, True), (0, False)])
def test_the_traced_value_passes(value: Any, traced: Any) -> None:
    check_as_traced(value, traced, "x.size(0)", "`Net`")


@pytest.mark.parametrize(("value", "traced"), [(4, 3), (torch.tensor(4), 3), (0, True), (True, False)])
def test_another_value_is_refused_with_what_and_where(value: Any, traced: Any) -> None:
    with pytest.raises(FxpruneError, match=rf"`x\.size\(0\)` is .* here, and was {traced} .* The code of `Net`"):
        check_as_traced(value, traced, "x.size(0)", "`Net`")


def test_the_check_is_no_dead_code() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(check_as_traced, (x, 3, "x", "`Net`"))
    graph.output(x)
    graph.eliminate_dead_code()
    assert check_as_traced in [node.target for node in graph.nodes]


def test_another_outcome_of_a_condition_and_other_modes_are_refused() -> None:
    check_outcome(torch.tensor(True), True, "all", "`Net`")
    with pytest.raises(FxpruneError, match="the condition `all` on values is False here, and was True"):
        check_outcome(torch.tensor(False), True, "all", "`Net`")
    check_modes(True, True, "`Net`", "`head`")
    with pytest.raises(FxpruneError, match="`Net` is in training, and `head` in eval"):
        check_modes(True, False, "`Net`", "`head`")


def test_only_training_warns() -> None:
    warn_in_training(None)
    with pytest.warns(FxpruneWarning, match="no noise"):
        warn_in_training("no noise")


# --- arguments ---

X = torch.zeros(2)


@pytest.mark.parametrize(
    ("traced", "same"),
    [
        (None, None), ("a", "a"), (True, True), (X, torch.ones(3)), ([X, None], (X, None)), ({"a": X}, {"a": X}),
        (math.nan, float("nan")), (torch.float16, torch.float16), (3, 3),
    ],
)  # fmt: skip
def test_what_is_as_in_the_trace_passes(traced: Any, same: Any) -> None:
    check_argument(same, expected_of(traced, is_computed_with=False), "x", "`Net`")


@pytest.mark.parametrize(
    ("traced", "other", "message"),
    [
        (None, X, "`x` is a tensor here, and was None"),
        (True, 1, "`x` is 1 here, and was True"),
        ([X, None], [X, X], r"`x\[1\]` is a tensor here, and was None"),
        ({"a": [1]}, {"a": [2]}, r"`x\['a'\]\[0\]` is 2 here, and was 1"),
        ({"a": X}, {"a": X, "b": X}, r"`x` is \['a', 'b'\] here, and was \['a'\]"),
        (object(), 3, "`x` is a int here, and was a object"),
    ],
)
def test_the_first_difference_is_named(traced: Any, other: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message):
        check_argument(other, expected_of(traced, is_computed_with=False), "x", "`Net`")


def test_a_number_that_is_computed_with_may_be_any_other() -> None:
    expected = expected_of(2.0, is_computed_with=True)
    check_argument(0.5, expected, "x", "`Net`")
    with pytest.raises(FxpruneError, match="was a number"):
        check_argument(None, expected, "x", "`Net`")

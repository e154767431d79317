"""The check that a size is the one of the trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from fxprune import FxpruneError
from fxprune.tracing.checks import check_as_traced


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

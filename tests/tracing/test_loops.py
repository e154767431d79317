"""The functions that the code of a loop calls, and that code."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from fxprune.errors import FxpruneError
from fxprune.tracing.loops import append, end_steps, joined, keep, new_list, next_value, steps, with_loop_blocks


def test_steps_start_and_end_where_they_should() -> None:
    assert list(steps(4, 1, 0)) == [1, 2, 3]
    assert list(steps(torch.tensor(3), 0, 0)) == [0, 1, 2]
    with pytest.raises(FxpruneError, match="a loop over a size of 1 has too few steps: give an input of 2 or more"):
        steps(1, 1, 2)


def test_lists_are_joined_in_their_order() -> None:
    values = new_list()
    append(values, 2)
    assert joined([1], values, [3]) == [1, 2, 3]


def test_the_code_of_a_graph_has_a_loop_as_a_block() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    count = graph.call_method("size", (x, 0))
    variable = graph.call_function(keep, (x,))
    index = graph.call_function(steps, (count, 0, 0))
    value = graph.call_function(torch.add, (variable, index))
    graph.call_function(next_value, (variable, value))
    graph.call_function(end_steps, (x, variable))
    graph.output((variable, graph.call_function(torch.neg, (x,))))
    graph.on_generate_code(lambda before: with_loop_blocks)
    module = fx.GraphModule(nn.Module(), graph)
    zeros = torch.zeros(4)
    assert torch.equal(module(zeros)[0], zeros + 6)
    assert "for steps in" in module.code
    assert "        add = torch.add(keep, steps)" in module.code

"""From ids to channels, and from channels on the same dimensions to groups."""

from __future__ import annotations

import numpy as np
from torch import fx, nn

from fxprune.channels import Dimension, IdTable, Labels
from fxprune.channels.grouping import collect
from fxprune.channels.polynomial import term

TRACED = fx.symbolic_trace(nn.Identity())


def test_channels_on_the_same_dimensions_form_a_group_with_the_name_of_its_first_module() -> None:
    ids = IdTable()
    a, b = ids.fresh(3), ids.fresh(2)
    parameters = {"a.weight": [a, 4], "a.bias": [a], "b.weight": [np.concatenate([a, b])]}
    graph = collect(TRACED, ids.resolve(), parameters, {}, {}, [], {}, ())
    assert [(group.name, len(group)) for group in graph.groups] == [("a", 3), ("b", 2)]
    assert graph.groups[0].dimensions == (Dimension("a.weight", 0), Dimension("a.bias", 0), Dimension("b.weight", 0))
    assert graph.parameters["a.weight"][1] == 4


def test_an_activation_tells_channels_of_one_parameter_apart() -> None:
    ids = IdTable()
    weight = ids.fresh(4)
    labels = {"half": Labels((2, weight[:2]), (False, True))}
    graph = collect(TRACED, ids.resolve(), {"a.weight": [weight]}, labels, {}, [], {}, ())
    assert [group.name for group in graph.groups] == ["a", "a#2"]
    assert sorted(group.channels.tolist() for group in graph.groups) == [[0, 1], [2, 3]]


def test_reasons_tell_channels_on_the_same_dimensions_apart() -> None:
    ids = IdTable()
    weight = ids.fresh(4)
    ids.freeze(weight[:1], "output")
    ids.mark_last_resort(weight[1:2], "norm")
    graph = collect(TRACED, ids.resolve(), {"a.weight": [weight]}, {}, {}, [], {}, ())
    assert [(frozen.reason, frozen.channels.tolist()) for frozen in graph.frozen] == [("output", [0])]
    assert {(group.last_resort, *group.channels.tolist()) for group in graph.groups} == {("norm", 1), ("", 2, 3)}


def test_a_channel_counts_its_indices_where_it_has_the_most() -> None:
    ids = IdTable()
    a = ids.fresh(2)
    graph = collect(TRACED, ids.resolve(), {"a.weight": [a], "b.weight": [5, np.repeat(a, 3)]}, {}, {}, [], {}, ())
    assert graph.groups[0].repeats == 3
    assert graph.groups[0].common == 1


def test_what_its_indices_in_all_dimensions_have_in_common_is_known() -> None:
    ids = IdTable()
    a = ids.fresh(2)
    dims = [5, np.repeat(a, 4)]
    labels = {"x": Labels((1, np.tile(a, 6)), (False, True))}
    graph = collect(TRACED, ids.resolve(), {"a.weight": dims}, labels, {}, [], {}, ())
    assert graph.groups[0].common == 2


def test_costs_labels_and_contractions_are_in_channel_numbers() -> None:
    ids = IdTable()
    a, b = ids.fresh(2), ids.fresh(2)
    ids.unite(a, b[::-1])
    labels, costs = {"x": Labels((3, b), (False, True))}, {"x": [term(10, b)]}
    memory, contractions = [[term(4, b)], [term(7)]], {"x": (("y", 1),)}
    graph = collect(TRACED, ids.resolve(), {"a.weight": [a]}, labels, costs, memory, contractions, ())
    assert graph.num_channels == 2
    assert graph.parameters["a.weight"][0].tolist() == [0, 1]
    assert graph.labels_of("x").dims[1].tolist() == graph.costs["x"][0].factors[0].tolist() == [1, 0]
    assert graph.flops(np.array([True, False])) == 10
    assert [graph.memory(np.array(alive)) for alive in ([True, True], [True, False])] == [8, 7]
    assert graph.contractions == {"x": (("y", 1),)}

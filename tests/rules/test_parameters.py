"""Ids of parameters and buffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.channels import IdTable
from fxprune.rules.parameters import Parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.ones(1, 4))
        self.register_buffer("_tensor_constant0", torch.ones(4))


@pytest.fixture
def parameters() -> Parameters:
    return Parameters(Tied(), IdTable())


def test_every_dimension_but_those_of_one_entry_has_ids(parameters: Parameters) -> None:
    assert "a.weight" in parameters
    assert "a.bias" not in parameters
    assert parameters.labels("a.weight").labelled == (0, 1)
    assert parameters.labels("scale").labelled == (1,)


def test_tied_parameters_share_their_ids(parameters: Parameters) -> None:
    assert parameters.labels("a.weight").dims == parameters.labels("b.weight").dims
    assert parameters.by_name().keys() == {"a.weight", "b.weight"}


def test_a_dimension_that_is_needed_whole_is_frozen_where_it_has_ids() -> None:
    ids = IdTable()
    parameters = Parameters(Tied(), ids)
    assert parameters.labels("a.weight", (0,)).labelled == (0,)
    parameters.labels("b.weight")
    assert set(ids.resolve().frozen.values()) == {"a.weight is needed whole in dimension 1"}


def test_removed_entries_of_a_parameter_are_zero_those_of_a_constant_are_not(parameters: Parameters) -> None:
    assert parameters.labels("a.weight").zero == (True, True)
    assert parameters.labels("_tensor_constant0").zero == (False,)


def test_what_is_written_into_a_buffer_is_known_wherever_it_is_read_next(parameters: Parameters) -> None:
    assert parameters.labels("scale").zero == (True, True)
    parameters.write("scale", (False, True))
    assert parameters.labels("scale").zero == (False, True)
    assert [len(dim) for dim in parameters.of_buffers()] == [4]

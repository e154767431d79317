"""A plan as a value, what it makes of a tensor, and as JSON."""

from __future__ import annotations

import json

import pytest
import torch

from fxprune import FxpruneError, Plan
from fxprune.planning.plan import plan_from_json, plan_to_json

PLAN = Plan({"a.weight": {0: [0, 2], 1: [1]}, "a.bias": {0: [0, 2]}}, flops=4, flops_before=9, flops_target=5)


def test_cut_gives_what_stays_and_leaves_the_tensor_as_it_is() -> None:
    whole = torch.arange(6.0).reshape(3, 2)
    assert PLAN.cut("a.weight", whole).tolist() == [[1.0], [5.0]]
    assert PLAN.cut("a.bias", whole[:, 0]).tolist() == [0.0, 4.0]
    assert PLAN.cut("b.weight", whole) is whole
    assert whole.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_cut_leaves_a_dimension_of_one_entry_for_all() -> None:
    assert PLAN.cut("a.weight", torch.tensor([[1.0], [2.0], [3.0]])).tolist() == [[1.0], [3.0]]
    assert PLAN.cut("a.weight", torch.tensor([[1.0, 2.0]])).tolist() == [[2.0]]


def test_zero_clears_what_goes_in_place() -> None:
    tensor = torch.arange(1.0, 7.0).reshape(3, 2)
    PLAN.zero_("a.weight", tensor)
    assert tensor.tolist() == [[0.0, 2.0], [0.0, 0.0], [0.0, 6.0]]
    PLAN.zero_("a.bias", tensor, fill=-1.0)
    assert tensor.tolist() == [[0.0, 2.0], [-1.0, -1.0], [0.0, 6.0]]
    PLAN.zero_("b.weight", tensor)
    assert tensor.tolist() == [[0.0, 2.0], [-1.0, -1.0], [0.0, 6.0]]


def test_padded_undoes_a_cut_but_for_zeros() -> None:
    whole = torch.arange(1.0, 7.0).reshape(3, 2)
    padded = PLAN.padded("a.weight", PLAN.cut("a.weight", whole), (3, 2))
    PLAN.zero_("a.weight", whole)
    assert torch.equal(padded, whole)


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2), torch.zeros(3)])
def test_a_tensor_that_is_too_small_is_refused(tensor: torch.Tensor) -> None:
    for use in (PLAN.cut, PLAN.zero_):
        with pytest.raises(FxpruneError, match=r"^a\.weight has shape .* keeps index \d of its dimension"):
            use("a.weight", tensor)


def test_json_gives_the_plan_back() -> None:
    shapes = {"a.weight": (3, 2), "a.bias": (3,)}
    assert plan_from_json(json.loads(json.dumps(plan_to_json(PLAN))), shapes) == PLAN
    with pytest.raises(ValueError, match=r"prunes 'a\.bias', which the model does not have"):
        plan_from_json(plan_to_json(PLAN), {"a.weight": (3, 2)})

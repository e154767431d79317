"""A plan prints in a line, is read from JSON, and refuses what is not for its model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.planning.plan import Plan, composed, plan_from_json, plan_since, plan_to_json

PLAN = Plan({"a.weight": {0: [0, 2], 1: [1]}, "b.weight": {1: [0, 2]}}, 30, 100, 33)
SHAPES = {"a.weight": (3, 2), "b.weight": (4, 3)}


def test_the_repr_is_a_short_summary() -> None:
    assert repr(PLAN) == "Plan(30 of 100 FLOPs (30.0%), 2 tensors cut, flops_target=33)"
    assert repr(Plan({}, 0, 0, 0, 0.5)).endswith("flops_target=0, latency_target=0.5)")
    assert repr(replace(PLAN, params_target=0.5, memory_target=0.25)).endswith(
        "flops_target=33, params_target=0.5, memory_target=0.25)"
    )
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(50)))
    small = fxprune.prune(model, 0.5, example_inputs=torch.zeros(1, 64), method="random", compensate=False)
    assert len(fxprune.plan_of(small).kept) > 50
    assert len(repr(fxprune.plan_of(small))) < 150


def test_plans_are_equal_if_they_keep_the_same() -> None:
    assert Plan(dict(PLAN.kept), 30, 100, 40) == PLAN
    assert Plan({}, 30, 100, 33) != PLAN
    assert PLAN != "a plan"


def test_json_and_back_is_the_same_plan_with_each_list_once() -> None:
    text = json.dumps(plan_to_json(PLAN))
    assert text.count("[0, 2]") == 1
    again = plan_from_json(json.loads(text), SHAPES)
    assert again == PLAN
    assert (again.flops_target, again.latency_target) == (33, 1.0)
    limited = replace(PLAN, latency_target=0.5, params_target=0.25, memory_target=0.75)
    again = plan_from_json(json.loads(json.dumps(plan_to_json(limited))), SHAPES)
    assert again.shares == limited.shares == {"latency_target": 0.5, "params_target": 0.25, "memory_target": 0.75}
    older = {key: value for key, value in plan_to_json(PLAN).items() if key not in PLAN.shares}
    assert set(plan_from_json(older, SHAPES).shares.values()) == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": -1}, "flops is -1, not a number of FLOPs"),
        ({"latency_target": 2}, "latency_target is 2, not a fraction"),
        ({"memory_target": "half"}, "memory_target is 'half', not a fraction"),
        ({"params_target": 0}, "params_target is 0, not a fraction"),
        ({"indices": {}}, "indices are not a list of lists"),
        ({"indices": [[]]}, "empty"),
        ({"indices": [[0, "1"]]}, "something other than indices"),
        ({"indices": [[2, 0], [1]]}, "not ascending"),
        ({"kept": []}, "not an object of objects"),
        ({"kept": {"c.weight": {"0": 0}}}, "prunes 'c.weight', which the model does not have"),
        ({"kept": {"a.weight": {"2": 0}}}, "prunes a.weight in dimension '2' of 2"),
        ({"kept": {"a.weight": {"0": 7}}}, "no list of indices 7 for a.weight"),
        ({"kept": {"a.weight": {"1": 0}}}, "keeps index 2 of a.weight in dimension 1 of size 2"),
    ],
)
def test_json_that_is_no_plan_for_the_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from_json({**plan_to_json(PLAN), **change}, SHAPES)
    with pytest.raises(ValueError, match="a list, not an object"):
        plan_from_json([], SHAPES)


def test_plans_are_composed_and_taken_apart() -> None:
    first = Plan({"a": {0: [1, 3, 5]}, "b": {1: [0, 2]}}, 60, 100, 60, 0.5)
    second = Plan({"a": {0: [0, 2], 1: [4]}, "c": {0: [7]}}, 30, 60, 40, memory_target=0.5)
    both = composed(first, second)
    assert both.kept == {"a": {0: [1, 5], 1: [4]}, "b": {1: [0, 2]}, "c": {0: [7]}}
    assert (both.flops, both.flops_before, both.flops_target, both.latency_target) == (30, 100, 40, 0.5)
    assert both.shares == {"latency_target": 0.5, "params_target": 1.0, "memory_target": 0.5}
    assert plan_since(first, both) == second
    assert plan_since(first, both).shares == second.shares
    assert plan_since(both, both).kept == {}
    assert composed(first, Plan({}, 30, 30, 30)).flops_before == 50, "counted for half the input"
    for other in (second, Plan({"a": {0: [1, 2]}, "b": {1: [0]}}, 1, 100, 1), Plan({}, 1, 100, 1)):
        with pytest.raises(ValueError, match="the first plan removes"):
            plan_since(first, other)

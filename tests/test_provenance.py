"""What a pruned model knows of its pruning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune import FxpruneError
from fxprune.provenance import check_order, earlier_stage, plan_from, plan_of, pruning_notes


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))


def pruned_by(model: nn.Module, flops: float) -> torch.fx.GraphModule:
    return fxprune.prune(model, flops, example_inputs=torch.zeros(1, 3, 4, 4), method="l2", compensate=False)


def test_the_plan_of_a_second_pruning_is_the_composed_one(original: nn.Module) -> None:
    once = pruned_by(original, 0.6)
    twice = pruned_by(once, 0.5)
    assert pruning_notes(twice).stages == (plan_of(once),)
    assert plan_of(twice).flops_before == plan_of(once).flops_before
    notes = earlier_stage(once, twice)
    assert notes is not None
    assert plan_from(once, twice).flops_before == plan_of(once).flops


def test_models_in_the_wrong_order_are_refused(original: nn.Module) -> None:
    with pytest.raises(FxpruneError, match="the original comes first, call f"):
        check_order("f(original, pruned)", pruned_by(original, 0.6), original)

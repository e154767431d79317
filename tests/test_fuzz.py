"""Random networks, plans and budgets: the invariant, the FLOPs and the shapes hold for all of them.

By default these are always the same 50 networks; `FXPRUNE_FUZZ=1000 pytest tests/test_fuzz.py` tries 1,000 new ones. A
failure prints a `--hypothesis-seed` that repeats it.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invariant import check_invariant, masks, plan_for, prunable, randomise
from random_nets import OPS, Step, build

import fxprune
from fxprune.verification import TOLERANCE

NUMBER = os.environ.get("FXPRUNE_FUZZ")
steps = st.builds(Step, st.sampled_from(sorted(OPS)), st.integers(0, 3), st.integers(0, 5), st.integers(0, 23))
nets = st.tuples(st.lists(steps, min_size=1, max_size=8), st.integers(1, 2), st.integers(1, 3))


@settings(
    max_examples=int(NUMBER or 50),
    derandomize=NUMBER is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(nets, st.integers(0, 2**16), st.floats(0.3, 0.95))
def test_a_random_net_is_pruned_correctly(description: tuple[list[Step], int, int], seed: int, budget: float) -> None:
    model, inputs = build(description)
    graph = check_invariant(model, inputs, seed=seed)
    try:
        plan = fxprune.make_plan(graph, fxprune.scores(graph, "random", seed=seed), flops=budget)
    except fxprune.FxpruneError as error:
        if "cannot be reached" in str(error):
            return
        raise
    assert plan.flops <= plan.flops_target
    double = tuple(x.double() for x in inputs)
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(model, pruned, double) <= TOLERANCE
    assert fxprune.count_flops(pruned, double) == plan.flops


# The smallest networks that showed bugs, which are fixed.
FOUND: dict[str, tuple[list[Step], int, int]] = {
    "an unused op is not counted although it draws random numbers": (
        [Step("attention", 0, 0, 1), Step("activation", 1, 0, 0)],
        1,
        1,
    ),
    "an unused tensor is not counted although it is written to": (
        [Step("written", 0, 0, 0), Step("activation", 2, 0, 0)],
        1,
        1,
    ),
    "kernels of each sample have as many conv groups as the batch has samples": (
        [Step("modulated", 0, 0, 1)],
        1,
        1,
    ),
    "an unused BatchNorm is not counted although it updates its statistics": (
        [Step("shared_twice", 0, 0, 0), Step("activation", 1, 0, 0)],
        1,
        1,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_net_that_was_once_pruned_wrongly_is_pruned_correctly(name: str) -> None:
    model, inputs = build(FOUND[name])
    for seed in range(3):
        check_invariant(model, inputs, seed=seed)


def test_random_nets_have_channels_to_prune() -> None:
    model, inputs = build(([Step("conv", 0, 0, 1), Step("attention", 0, 0, 1), Step("residual", 0, 1, 0)], 2, 2))
    graph = fxprune.analyze(fxprune.trace(randomise(model), tuple(x.double() for x in inputs)))
    assert prunable(graph) > 6
    assert all(plan_for(graph, alive).flops < graph.flops.total for alive in masks(graph, 3))

"""Random networks, plans and budgets: the invariant, the FLOPs and the shapes hold for all of them.

By default these are always the same 50 networks; `FXPRUNE_FUZZ=1000 pytest tests/test_fuzz.py` tries 1,000 new ones. A
failure prints a `--hypothesis-seed` that repeats it.
"""

from __future__ import annotations

import copy
import os
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invariant import check_invariant, masks, plan_for, prunable, randomise
from random_calls import CALLS, images
from random_calls import build as build_called
from random_nets import OPS, Step, build
from torch import Tensor, nn

import fxprune
from fxprune.running.double import outputs_in_double
from fxprune.verification import TOLERANCE

NUMBER = os.environ.get("FXPRUNE_FUZZ")
steps = st.builds(Step, st.sampled_from(sorted(OPS)), st.integers(0, 3), st.integers(0, 5), st.integers(0, 23))
nets = st.tuples(st.lists(steps, min_size=1, max_size=8), st.integers(1, 2), st.integers(1, 3))


fuzzed = settings(
    max_examples=int(NUMBER or 50),
    derandomize=NUMBER is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@fuzzed
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


calls = st.builds(Step, st.sampled_from(sorted(CALLS)), st.integers(0, 3), st.integers(0, 5), st.integers(0, 23))
called_nets = st.tuples(st.lists(steps | calls | calls, min_size=1, max_size=6), st.integers(1, 2), st.integers(1, 3))
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"task": "b"},
    {"flag": True},
    {"mask": torch.tensor([0.5, -0.5], dtype=torch.float64).view(2, 1, 1, 1)},
)
SIZES = ((2, 4, 4), (3, 4, 4), (1, 4, 4), (2, 6, 6), (2, 4, 6), (2, 9, 3))


# Torch says once that it has no fused kernel for such types.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@fuzzed
@given(called_nets, st.sampled_from(ARGUMENTS), st.integers(0, 2**16))
def test_other_arguments_and_sizes_give_what_the_original_gives_or_are_refused(
    description: tuple[list[Step], int, int], arguments: dict[str, Any], seed: int
) -> None:
    check_calls(description, arguments, seed)


def check_calls(description: tuple[list[Step], int, int], arguments: dict[str, Any], seed: int) -> None:
    """Prune a net by a call with these arguments, and compare it with the original at all other calls that this takes.

    Args:
        description: of the net.
        arguments: of the call that it is pruned with.
        seed: of weights and plan.
    """
    model, count = build_called(description), description[1]
    example = images(count, *SIZES[0]) | arguments
    graph = check_invariant(model, example, seed=seed, plans=1, other_batch=False)
    pruned = fxprune.rewrite(graph, plan_for(graph, next(masks(graph, 1, seed))))
    check_autocast(model, pruned, example)
    for others, sizes, training in (
        *((others, SIZES[0], False) for others in ARGUMENTS),
        *((arguments, sizes, sizes[1] == 6) for sizes in SIZES),
        *((arguments, sizes, True) for sizes in SIZES[:2]),
    ):
        other = images(count, *sizes) | others
        try:
            outputs_in_double(copy.deepcopy(model), (), other, training=training)
        except RuntimeError:
            continue
        try:
            error = fxprune.verify(model, pruned, other, training=training)
        except fxprune.FxpruneError:
            assert others != arguments or sizes[1:] != (4, 4), "what it was pruned with must be taken"
            continue
        assert error <= TOLERANCE, f"off by {error:.2g} with {others} at {sizes}, training {training}\n{pruned.code}"


def check_autocast(model: nn.Module, pruned: nn.Module, arguments: dict[str, Any]) -> None:
    """The outputs have the original's types in float32 under autocast, which regions within the model change."""
    single = {name: x.float() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    # Some do not run so, and what does other things for another type is refused.
    with torch.no_grad(), torch.autocast("cpu"), suppress(RuntimeError, fxprune.FxpruneError):
        types = [x.dtype for x in copy.deepcopy(pruned).float()(**single)]
        assert types == [x.dtype for x in copy.deepcopy(model).float()(**single)]


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

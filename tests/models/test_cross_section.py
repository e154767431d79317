"""Real models of many families pass all checks of the model matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.coverage import HERE, check, random_model

import fxprune
from fxprune.gates.gating import dagger_of, gated_groups, insert_gates
from fxprune.models import example_inputs
from fxprune.rewriting import alive_channels
from fxprune.running import trees
from fxprune.verification import TOLERANCE, largest_error

MODELS = (HERE / "models-fast.txt").read_text().split()


@pytest.mark.parametrize("spec", MODELS)
def test_a_real_model_is_pruned_to_half_of_its_flops(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    assert check(spec)["failed"] == {}


# GoogLeNet's auxiliary heads run only in training.
@pytest.mark.filterwarnings("ignore:Only the code of eval is in the graph:fxprune.FxpruneWarning")
@pytest.mark.parametrize("spec", MODELS)
def test_closed_gates_equal_the_rewritten_model(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    model = random_model(spec).double()
    inputs = tuple(x.double() for x in example_inputs(model))
    graph = fxprune.analyze(fxprune.trace(model, inputs, copy=False))
    gated = insert_gates(graph, last_resort=True)
    with torch.no_grad():
        for a, b in zip(trees.tensors(model(*inputs)), trees.tensors(gated(*inputs)), strict=True):
            assert torch.equal(a, b)
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=0.5)
    alive = alive_channels(graph, plan)
    channels = np.concatenate([group.channels for group in gated_groups(graph, last_resort=True)])
    dagger_of(gated).set_logits(torch.from_numpy(np.where(alive[channels], 1.0, -1.0)))
    with torch.no_grad():
        expected, got = (trees.tensors(net(*inputs)) for net in (fxprune.rewrite(graph, plan), gated))
    assert largest_error(expected, got) <= TOLERANCE

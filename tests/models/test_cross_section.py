"""Real models of many families pass all checks of the model matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.coverage import CHECKS, HERE, call, check

import fxprune
from fxprune.gates.gating import dagger_of, gated_groups, insert_gates
from fxprune.rewriting import alive_channels
from fxprune.running import trees
from fxprune.running.double import outputs_in_double
from fxprune.verification import TOLERANCE, largest_error

MODELS = (HERE / "models-fast.txt").read_text().split()


def check_gates(spec: str, state: dict[str, Any], result: dict[str, Any]) -> None:
    """Gates change nothing; closed ones equal the rewritten model."""
    graph, inputs = state["graph"], state["inputs"]
    gated = insert_gates(graph, last_resort=True)
    with torch.no_grad():
        for a, b in zip(trees.tensors(call(state["model"].eval(), inputs)), trees.tensors(gated(*inputs)), strict=True):
            assert torch.equal(a, b)
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=0.5)
    alive = alive_channels(graph, plan)
    channels = np.concatenate([group.channels for group in gated_groups(graph, last_resort=True)])
    dagger_of(gated).set_logits(torch.from_numpy(np.where(alive[channels], 1.0, -1.0)))
    expected, got = (outputs_in_double(net, inputs, {}) for net in (fxprune.rewrite(graph, plan), gated))
    error = largest_error(expected, got)
    assert error <= TOLERANCE, f"closed gates are off by {error:.1e}"


@pytest.mark.parametrize("spec", MODELS)
def test_a_real_model_is_pruned_to_half_of_its_flops(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    assert check(spec, checks={**CHECKS, "gates": check_gates})["failed"] == {}

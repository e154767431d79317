"""Two graphs run side by side, and nothing is kept longer than it is needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.compensation.lockstep import Lockstep, Runner
from fxprune.data import Batch
from fxprune.errors import CannotScoreError


class Net(nn.Module):
    """Writes into its input, and has a functional layer with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(4, 6), nn.Parameter(torch.randn(2, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(2)
        y = self.first(x).relu()
        return nn.functional.linear(y, self.weight), y.sum(1)


@pytest.fixture
def traced() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.trace(Net(), torch.randn(1, 4))


@pytest.fixture
def batches() -> list[Batch]:
    return [Batch((torch.randn(size, 4),), {}) for size in (3, 2)]


def test_values_are_those_of_the_model_and_are_dropped_after_their_last_use(
    traced: fx.GraphModule, batches: list[Batch]
) -> None:
    inputs = [batch.args[0].clone() for batch in batches]
    runner = Runner(traced, batches)
    alive = []
    for node in traced.graph.nodes:
        values = runner.run(node)
        runner.drop(node)
        alive.append(len(runner.values))
    assert max(alive) <= 3
    for got, batch, before in zip(values, batches, inputs, strict=True):
        assert torch.equal(batch.args[0], before), "the inputs were written into"
        expected = traced(before.clone())
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_partners_have_run_when_they_are_yielded_and_only_then(traced: fx.GraphModule, batches: list[Batch]) -> None:
    pruned = fxprune.prune(Net(), flops=0.5, example_inputs=torch.randn(1, 4), compensate=False)
    lockstep = Lockstep(traced, pruned, batches)
    pairs = []
    for partner, node in lockstep:
        if partner is not None:
            assert partner in lockstep.original.values
            assert partner.name == node.name
        assert node not in lockstep.pruned.values
        lockstep.pruned.run(node)
        pairs.append((partner, node))
    assert [node for _, node in pairs] == list(pruned.graph.nodes)
    assert {"first", "relu"} <= {partner.name for partner, _ in pairs if partner is not None}


def test_samples_that_do_not_fit_are_named(traced: fx.GraphModule) -> None:
    runner = Runner(traced, [Batch((torch.randn(3, 5),), {})], CannotScoreError)
    with pytest.raises(CannotScoreError, match=r"data of shapes \(3, 5\)"):
        list(map(runner.run, traced.graph.nodes))

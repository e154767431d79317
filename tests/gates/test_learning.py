"""Gates are learned to a budget, the same way each time, and go on after an interruption."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from gates.trained_net import learn, trained_net

import fxprune
from fxprune.gates import learn_gates
from fxprune.planning.budgets import Request
from fxprune.planning.make import lowest_flops


def test_gates_reach_the_budget_and_leave_model_and_weights_alone() -> None:
    graph, data = trained_net()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    gates = learn(graph, data)
    assert 0.4 < gates.flops <= 0.5
    assert len(gates.losses) == 48
    for name, tensor in graph.module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(gates.module.state_dict()[name], before[name])
    plan = fxprune.make_plan(graph, gates.scores, flops=0.5)
    assert 0.45 <= plan.flops / plan.flops_before <= 0.5


def test_learned_gates_lose_less_than_the_order_they_start_from() -> None:
    graph, data = trained_net()
    inputs, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])

    def loss(scores: fxprune.channels.Scores) -> float:
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=0.5)).eval()
        with torch.no_grad():
            return float(F.cross_entropy(pruned(inputs), labels))

    assert loss(learn(graph, data, start="random", lr=0.1).scores) < loss(fxprune.scores(graph, "random"))


def test_gates_are_learned_without_labels_from_the_model_itself() -> None:
    graph, data = trained_net()
    gates = learn_gates(graph, [x for x, _ in data], flops=0.5, epochs=4, progress=False)
    assert gates.flops <= 0.5


def test_the_same_seed_gives_the_same_gates() -> None:
    graph, data = trained_net()
    first, second = learn(graph, data, epochs=2), learn(graph, data, epochs=2)
    assert (first.scores == second.scores).all()


@pytest.mark.parametrize("train_weights", [False, True])
def test_a_run_that_was_killed_ends_in_the_same_gates(tmp_path: Path, train_weights: bool) -> None:
    graph, data = trained_net()
    options = {"epochs": 2, "train_weights": train_weights}
    whole = learn(graph, data, **options)

    def stop(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if done == 11:
            raise KeyboardInterrupt

    path = tmp_path / "gates.safetensors"
    with pytest.raises(KeyboardInterrupt):
        learn(graph, data, **options, progress=stop, checkpoint=path, checkpoint_every=5)
    resumed = learn(graph, data, **options, checkpoint=path, checkpoint_every=5)
    assert (resumed.scores == whole.scores).all()
    assert resumed.losses == whole.losses


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    graph, data = trained_net()
    path = tmp_path / "gates.safetensors"
    learn(graph, data, epochs=1, checkpoint=path)
    with torch.no_grad():
        graph.module.get_parameter("0.weight").add_(1.0)
    with pytest.raises(fxprune.FxpruneError, match=r"is of a run that differs in weights"):
        learn(graph, data, epochs=1, checkpoint=path)


def test_the_budget_is_half_the_flops_a_fraction_or_a_count() -> None:
    graph, data = trained_net()
    half = learn(graph, data, epochs=1, flops=None).scores
    assert (learn(graph, data, epochs=1, flops=0.5).scores == half).all()
    assert (learn(graph, data, epochs=1, flops=graph.flops.total // 2).scores == half).all()
    assert learn(graph, data, epochs=1, flops=2 * graph.flops.total).flops == 1.0


@pytest.mark.parametrize(
    ("flops", "message"),
    [
        (50, r"a budget of 50 FLOPs .* cannot be reached.* If 50 % was meant, give 0.5"),
        (0.001, "cannot be reached"),
        (0, r"flops \(=0\) must be positive"),
        ("half", r"flops \(='half'\) must be a number"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(flops: object, message: str) -> None:
    graph, data = trained_net()
    with pytest.raises(fxprune.FxpruneError, match=message):
        learn(graph, data, flops=flops)


def test_a_few_steps_on_one_batch_do_no_harm_and_no_group_is_emptied() -> None:
    graph, data = trained_net()
    inputs = torch.cat([x for x, _ in data])

    def distance(scores: fxprune.channels.Scores) -> float:
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=0.3)).eval()
        with torch.no_grad():
            return float((pruned(inputs).softmax(1) - graph.module(inputs).softmax(1)).abs().mean())

    gates = learn_gates(graph, [data[0][0]], flops=0.3, epochs=20, progress=False)
    assert distance(gates.scores) <= distance(fxprune.scores(graph))
    assert all((gates.scores[group.channels] > 0).any() for group in graph.groups)


def test_the_best_of_several_orders_is_started_from(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = trained_net()
    given: list[int] = []

    def last(graph: fxprune.ChannelGraph, candidates: list[np.ndarray], *_: object, **__: object) -> int:
        given.append(len(candidates))
        return len(candidates) - 1

    monkeypatch.setattr("fxprune.gates.orders.PART", 64)
    monkeypatch.setattr("fxprune.gates.run.least_lossy", last)
    learn(graph, data, epochs=1, start="surgeon")
    assert 1 < given[0] <= 5


def test_a_block_that_does_nothing_goes_before_channels() -> None:
    graph, data = trained_net(blocks=(0.0, 1.0))
    gates = learn(graph, data, depth=True, flops=0.6)
    assert gates.closed == ("2.branch",)
    assert gates.flops <= 0.6
    plan = fxprune.make_plan(graph, gates.scores, flops=0.6, without=gates.closed)
    assert tuple(plan.removed) == gates.closed
    assert [gates.scores[block.channel] > 0 for block in graph.blocks] == [False, True]
    alone = learn(graph, data, flops=0.6)
    assert alone.closed == ()
    assert all(alone.scores[block.channel] == 1e6 for block in graph.blocks)


def test_what_is_ignored_gets_no_gates() -> None:
    graph, data = trained_net(blocks=(0.0, 1.0))
    gates = learn(graph, data, depth=True, flops=0.7, ignore=["2.*", "0"])
    ignored = [block for block in graph.blocks if block.name == "2.branch"]
    touched = [
        d.parameter for group in graph.groups for d in group.dimensions if (gates.scores[group.channels] < 1e6).any()
    ]
    assert ignored
    assert touched
    assert all(gates.scores[block.channel] == 1e6 for block in ignored)
    assert not [name for name in touched if name.startswith(("0.", "2."))]
    with pytest.raises(fxprune.FxpruneError, match="ignore pattern 'nothing' matches no module"):
        learn(graph, data, ignore="nothing")
    with pytest.raises(fxprune.UnreachableBudgetError, match=r"channels: ignored.*ignore less"):
        learn(graph, data, ignore="*")


@pytest.mark.parametrize("start", ["l2", "random"])
def test_gates_of_blocks_learn(start: str) -> None:
    graph, data = trained_net(blocks=(1.0, 1.0))
    first, later = (learn(graph, data, depth=True, start=start, epochs=epochs, lr=0.1) for epochs in (1, 3))
    assert all(first.scores[block.channel] != later.scores[block.channel] for block in graph.blocks)


def test_a_budget_that_blocks_alone_reach_is_met() -> None:
    graph, data = trained_net(blocks=(1.0, 1.0))
    lowest = lowest_flops(graph, Request()) / graph.flops.total
    assert lowest_flops(graph, Request(depth=True)) / graph.flops.total < 0.9 * lowest
    with pytest.raises(fxprune.UnreachableBudgetError, match="depth=True"):
        learn(graph, data, flops=0.9 * lowest)
    assert learn(graph, data, flops=0.9 * lowest, depth=True).flops <= 0.9 * lowest


def _work(rank: int, port: int, path: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    graph, data = trained_net()
    np.save(f"{path}/{rank}.npy", learn(graph, data, epochs=2).scores)
    torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_gates_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_work, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    graph, data = trained_net()
    alone = learn(graph, data, epochs=2).scores
    for rank in range(2):
        assert np.abs(np.load(tmp_path / f"{rank}.npy") - alone).max() < 1e-5

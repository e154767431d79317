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
from torch import nn

import fxprune
from fxprune.compensation.holdout import output_error
from fxprune.data import Batch
from fxprune.gates.learning import Gates, _orders, learn_gates
from fxprune.training.snapshots import load_snapshot


def _trained() -> tuple[fxprune.ChannelGraph, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A small net that tells which quarter of a picture is bright, and its data."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 1, 8, 8) * 0.5
    labels = torch.arange(256) % 4
    for number, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        inputs[number, 0, row : row + 4, column : column + 4] += 1.0
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
    graph = fxprune.analyze(fxprune.trace(net.eval(), inputs[:1]))
    return graph, [(inputs[i : i + 32], labels[i : i + 32]) for i in range(0, 256, 32)]


def _learn(graph: fxprune.ChannelGraph, data: list[tuple[torch.Tensor, torch.Tensor]], **options: object) -> Gates:
    settings = {"flops": 0.5, "epochs": 6, "train_weights": False, "progress": False, **options}
    return learn_gates(graph, data, **settings)  # type: ignore[arg-type]


def test_gates_reach_the_budget_and_leave_model_and_weights_alone() -> None:
    graph, data = _trained()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    gates = _learn(graph, data)
    assert 0.4 < gates.flops <= 0.5
    assert len(gates.losses) == 48
    for name, tensor in graph.module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(gates.module.state_dict()[name], before[name])
    plan = fxprune.make_plan(graph, gates.scores, flops=0.5)
    assert 0.45 <= plan.flops / plan.flops_before <= 0.5


def test_learned_gates_lose_less_than_the_order_they_start_from() -> None:
    graph, data = _trained()
    inputs, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])

    def loss(scores: fxprune.channels.Scores) -> float:
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=0.5)).eval()
        with torch.no_grad():
            return float(F.cross_entropy(pruned(inputs), labels))

    assert loss(_learn(graph, data, start="random", lr=0.1).scores) < loss(fxprune.scores(graph, "random"))


def test_gates_are_learned_without_labels_from_the_model_itself() -> None:
    graph, data = _trained()
    gates = learn_gates(graph, [x for x, _ in data], flops=0.5, epochs=4, progress=False)
    assert gates.flops <= 0.5


def test_the_same_seed_gives_the_same_gates() -> None:
    graph, data = _trained()
    first, second = _learn(graph, data, epochs=2), _learn(graph, data, epochs=2)
    assert (first.scores == second.scores).all()


@pytest.mark.parametrize("train_weights", [False, True])
def test_a_run_that_was_killed_ends_in_the_same_gates(tmp_path: Path, train_weights: bool) -> None:
    graph, data = _trained()
    options = {"epochs": 2, "train_weights": train_weights}
    whole = _learn(graph, data, **options)

    def stop(name: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        if done == 11:
            raise KeyboardInterrupt

    path = tmp_path / "gates.safetensors"
    with pytest.raises(KeyboardInterrupt):
        _learn(graph, data, **options, progress=stop, checkpoint=path, checkpoint_every=5)
    resumed = _learn(graph, data, **options, checkpoint=path, checkpoint_every=5)
    assert (resumed.scores == whole.scores).all()
    assert resumed.losses == whole.losses


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    graph, data = _trained()
    path = tmp_path / "gates.safetensors"
    _learn(graph, data, epochs=1, checkpoint=path)
    with torch.no_grad():
        graph.module.get_parameter("0.weight").add_(1.0)
    with pytest.raises(fxprune.FxpruneError, match=r"is of a run that differs in weights"):
        _learn(graph, data, epochs=1, checkpoint=path)


def test_a_budget_that_is_no_fraction_is_refused() -> None:
    graph, data = _trained()
    with pytest.raises(fxprune.FxpruneError, match=r"flops \(=2.0\) must be a fraction"):
        learn_gates(graph, data, flops=2.0, progress=False)


def test_a_few_steps_on_one_batch_do_no_harm_and_no_group_is_emptied() -> None:
    graph, data = _trained()
    inputs = torch.cat([x for x, _ in data])

    def distance(scores: fxprune.channels.Scores) -> float:
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=0.3)).eval()
        with torch.no_grad():
            return float((pruned(inputs).softmax(1) - graph.module(inputs).softmax(1)).abs().mean())

    gates = learn_gates(graph, [data[0][0]], flops=0.3, epochs=20, progress=False)
    assert distance(gates.scores) <= distance(fxprune.scores(graph))
    assert all((gates.scores[group.channels] > 0).any() for group in graph.groups)


def test_gates_that_learning_ruined_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = _trained()
    samples = [Batch((x,), {}) for x, _ in data]

    def error(scores: fxprune.channels.Scores) -> float:
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=0.5))
        return output_error(graph.module, pruned, samples)

    at_start = error(fxprune.scores(graph, "l2"))
    # Each picture's label is another's: the fewer of the good channels are open, the less is lost.
    wrong = [(x, (y + 1) % 4) for x, y in data]
    gates = _learn(graph, wrong, start="l2", lr=0.5)
    assert error(gates.scores) <= at_start
    assert gates.flops <= 0.5
    monkeypatch.setattr("fxprune.gates.run.least_lossy", lambda graph, candidates, *_, **__: len(candidates) - 1)
    assert error(_learn(graph, wrong, start="l2", lr=0.5).scores) > at_start


def test_the_gates_of_the_start_the_learned_ones_and_those_halfway_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, data = _trained()
    seen: list[list[np.ndarray]] = []

    def halfway(graph: fxprune.ChannelGraph, candidates: list[np.ndarray], *_: object, **__: object) -> int:
        seen.append(candidates)
        return 1

    monkeypatch.setattr("fxprune.gates.run.least_lossy", halfway)
    chosen = _learn(graph, data, start="random", lr=0.3)
    ((start, between, learned),) = seen
    assert all(0.4 < graph.flops(alive) / graph.flops.total <= 0.5 for alive in (start, between, learned))
    apart = int((start != learned).sum())
    assert 0 < (between != start).sum() < apart
    assert 0 < (between != learned).sum() < apart
    assert ((chosen.scores > 0) == between).all()


def test_the_best_of_several_orders_is_started_from(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = _trained()
    monkeypatch.setattr("fxprune.gates.learning._PART", 64)
    samples = Batch((torch.cat([x for x, _ in data]),), {})
    orders = _orders(graph, "surgeon", samples, seed=0)
    assert len(orders) == 5, "four parts of 64 samples, and the mean of their scores"
    assert np.allclose(orders[-1], np.mean(orders[:-1], axis=0))
    assert (
        len(_orders(graph, "surgeon", samples.rows(0, 100), seed=0)) == len(_orders(graph, "l2", samples, seed=0)) == 1
    )
    given: list[int] = []

    def last(graph: fxprune.ChannelGraph, candidates: list[np.ndarray], *_: object, **__: object) -> int:
        given.append(len(candidates))
        return len(candidates) - 1

    monkeypatch.setattr("fxprune.gates.run.least_lossy", last)
    _learn(graph, data, epochs=1)
    assert 1 < given[0] <= 5


def test_a_step_moves_what_a_group_shares_by_a_sixteenth_of_what_it_moves_each_bias(tmp_path: Path) -> None:
    graph, data = _trained()
    path = tmp_path / "gates.safetensors"
    _learn(graph, data[:1], epochs=1, lr=0.01, checkpoint=path)
    state = load_snapshot(path)["model"]
    moved = [value.abs().max() for name, value in state.items() if name.endswith(".direct")]
    # Adam's first step is the learning rate, whatever the gradient.
    assert moved == [pytest.approx(0.01 / 16, rel=1e-3)] * len(moved)
    assert len(moved) == len(graph.groups)


def _work(rank: int, port: int, path: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    graph, data = _trained()
    np.save(f"{path}/{rank}.npy", _learn(graph, data, epochs=2).scores)
    torch.distributed.destroy_process_group()


def test_two_processes_end_with_the_gates_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_work, (port, str(tmp_path)), nprocs=2, start_method="spawn")
    graph, data = _trained()
    alone = _learn(graph, data, epochs=2).scores
    for rank in range(2):
        assert np.abs(np.load(tmp_path / f"{rank}.npy") - alone).max() < 1e-5

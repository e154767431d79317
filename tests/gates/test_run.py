"""A run ends with the best of its start, the learned gates and those halfway; its parts learn at their own rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gates.trained_net import learn, trained_net

import fxprune
from fxprune.compensation.holdout import OutputError
from fxprune.data import Batch
from fxprune.gates.run import Settings
from fxprune.training.snapshots import load_snapshot


def test_gates_that_learning_ruined_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = trained_net()
    samples = [Batch((x,), {}) for x, _ in data]

    def error(scores: fxprune.channels.Scores) -> float:
        pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=0.5))
        return OutputError(graph.module, samples)(pruned)

    at_start = error(fxprune.scores(graph, "l2"))
    # Each picture's label is another's: the fewer of the good channels are open, the less is lost.
    wrong = [(x, (y + 1) % 4) for x, y in data]
    gates = learn(graph, wrong, start="l2", lr=0.5)
    assert error(gates.scores) <= at_start
    assert gates.flops <= 0.5
    monkeypatch.setattr("fxprune.gates.run.least_lossy", lambda graph, candidates, *_, **__: len(candidates) - 1)
    assert error(learn(graph, wrong, start="l2", lr=0.5).scores) > at_start


def test_the_gates_of_the_start_the_learned_ones_and_those_halfway_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, data = trained_net()
    seen: list[list[np.ndarray]] = []

    def halfway(graph: fxprune.ChannelGraph, candidates: list[np.ndarray], *_: object, **__: object) -> int:
        seen.append(candidates)
        return 1

    monkeypatch.setattr("fxprune.gates.run.least_lossy", halfway)
    chosen = learn(graph, data, start="random", lr=0.3)
    ((start, between, learned),) = seen
    assert all(0.4 < graph.flops(alive) / graph.flops.total <= 0.5 for alive in (start, between, learned))
    apart = int((start != learned).sum())
    assert 0 < (between != start).sum() < apart
    assert 0 < (between != learned).sum() < apart
    assert ((chosen.scores > 0) == between).all()


def test_a_step_moves_what_a_group_shares_by_a_sixteenth_of_what_it_moves_each_bias(tmp_path: Path) -> None:
    graph, data = trained_net()
    path = tmp_path / "gates.safetensors"
    learn(graph, data[:1], epochs=1, lr=0.01, checkpoint=path)
    state = load_snapshot(path)["model"]
    moved = [value.abs().max() for name, value in state.items() if name.endswith(".direct")]
    # Adam's first step is the learning rate, whatever the gradient.
    assert moved == [pytest.approx(0.01 / 16, rel=1e-3)] * len(moved)
    assert len(moved) == len(graph.groups)


@pytest.mark.parametrize("name", ["epochs", "lr", "weight_lr", "temperature"])
def test_a_setting_that_is_not_positive_is_refused(name: str) -> None:
    settings = {"budget": 1, "price": "FLOPs", "epochs": 1, "start": "l2", "lr": 0.1, "train_weights": True}
    settings |= {"weight_lr": 0.1, "temperature": 1.0, "last_resort": False, "depth": False, "ignore": "", "seed": 0}
    settings |= {"weights": ""}
    with pytest.raises(fxprune.FxpruneError, match=rf"{name} \(=0\) must be positive"):
        Settings(**{**settings, name: 0})  # type: ignore[arg-type]

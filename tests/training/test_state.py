"""Settings, optimizer and learning rate of a fine-tuning run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import FxpruneError
from fxprune.training.runs import make_accelerator
from fxprune.training.state import Run, Settings, make_optimizer

GIVEN: dict[str, Any] = {
    "epochs": 2, "lr": None, "optimizer": "sgd", "schedule": "cosine", "warmup": 0.0, "weight_decay": 0.1,
    "label_smoothing": 0.0, "temperature": 2.0, "distill_weight": 0.5, "gradient_accumulation": 1, "seed": 0,
    "distilled": False, "careful": False, "batch_norm": "auto", "weights": "",
}  # fmt: skip


@pytest.fixture
def accelerator() -> Iterator[Any]:
    with make_accelerator() as made:
        yield made


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "must be positive"),
        ("temperature", 0.0, "must be positive"),
        ("lr", -1.0, "must be at least 0"),
        ("label_smoothing", 1.5, "must be from 0 to 1"),
        ("schedule", "step", "is not known: use 'cosine' or 'constant'"),
        ("batch_norm", "eval", "is not known: use 'auto', 'train' or 'freeze'"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=rf"^{name} \(={value!r}\) {message}"):
        Settings(**{**GIVEN, name: value})


def test_only_weights_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    decayed, others = make_optimizer(model, "adamw", Settings(**GIVEN)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert decayed["params"] == [model[0].weight]
    assert len(others["params"]) == 4
    assert {group["lr"] for group in (decayed, others)} == {1e-4}


@pytest.mark.parametrize(
    ("batch_norm", "careful", "frozen"),
    [("auto", False, False), ("auto", True, True), ("train", True, False), ("freeze", False, True)],
)
def test_statistics_of_batch_norm_stay_or_follow(
    accelerator: Any, batch_norm: str, careful: bool, frozen: bool
) -> None:
    settings = Settings(**{**GIVEN, "batch_norm": batch_norm, "careful": careful})
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()).eval()
    optimizer = make_optimizer(model, "sgd", settings)
    assert {group["lr"] for group in optimizer.param_groups} == {0.001 if careful else 0.01}
    run = Run(accelerator, settings, model, optimizer, None, None)
    for _ in range(2):
        assert [module.training for module in model.modules()] == [True, True, not frozen, True]
        run.evaluate(lambda evaluated: float(evaluated.training))


def test_a_rate_that_is_given_is_that_of_any_optimizer() -> None:
    settings = Settings(**{**GIVEN, "lr": 0.5})
    for choice in ("sgd", lambda groups: torch.optim.Adam(groups, lr=0.1)):
        assert {group["lr"] for group in make_optimizer(nn.Linear(2, 2), choice, settings).param_groups} == {0.5}
    with pytest.raises(FxpruneError, match=r"^optimizer \(='lion'\) is not known"):
        make_optimizer(nn.Linear(2, 2), "lion", settings)


def run_of(accelerator: Any, **settings: Any) -> Run:
    chosen, model = Settings(**{**GIVEN, "lr": 1.0, **settings}), nn.Linear(2, 2)
    return Run(accelerator, chosen, model, make_optimizer(model, "sgd", chosen), None, None)


def test_the_rate_rises_in_the_warmup_and_falls_by_a_cosine(accelerator: Any) -> None:
    run = run_of(accelerator, warmup=0.5)
    # Two epochs of four updates, of which two warm up.
    rates = [run.set_rate(done, 4) for done in range(8)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6)])
    assert run.optimizer.param_groups[0]["lr"] == run.rate == rates[-1]
    constant = run_of(accelerator, schedule="constant")
    assert [constant.set_rate(done, 4) for done in range(8)] == [1.0] * 8


def test_weights_that_are_not_finite_are_seen(accelerator: Any) -> None:
    run = run_of(accelerator)
    assert run.is_finite()
    with torch.no_grad():
        run.model.weight[0, 0] = math.nan
    assert not run.is_finite()

"""prune(): by method and data, compensated, verified; what is wrong is said before the work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariant import image
from refusals import assert_refused, small
from torch import Tensor, nn

import fxprune
from fxprune.provenance import pruning_notes


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image).mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 1, 10, 10, generator=random), torch.arange(16) % 5) for _ in range(4)]


@pytest.mark.parametrize("method", [None, "surgeon", "fisher", "taylor", "l2", "relevance", "dagger"])
def test_prunes_on_a_loader_and_meets_the_budget(model: nn.Module, data: list[object], method: str | None) -> None:
    small = fxprune.prune(model, 0.6, data=data, method=method)
    share = fxprune.count_flops(small, data[0][0][:1]) / fxprune.count_flops(model, data[0][0][:1])
    assert share <= 0.6
    assert small(data[0][0]).shape == (16, 5)


@pytest.mark.parametrize("form", ["tensors", "generator", "dicts"])
def test_takes_data_without_labels(model: nn.Module, data: list[tuple[Tensor, Tensor]], form: str) -> None:
    images = [image for image, _ in data]
    given = {"tensors": images, "generator": iter(images), "dicts": [{"image": image} for image in images]}[form]
    small = fxprune.prune(model, 0.6, data=given)
    assert fxprune.plan_of(small).flops <= fxprune.plan_of(small).flops_target


def test_compensation_comes_nearer_to_the_original_and_its_structure_is_certified(
    model: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    bare = fxprune.prune(model, 0.5, data=data, compensate=False)
    small = fxprune.prune(model, 0.5, data=data)
    assert pruning_notes(small).compensated
    fresh = torch.randn(64, 1, 10, 10)
    with torch.no_grad():
        wanted = model(fresh)
        assert (small(fresh) - wanted).square().mean() < (bare(fresh) - wanted).square().mean()
    assert fxprune.verify(model, small) < 1e-9
    assert fxprune.verify(model, bare) < 1e-9


def test_verify_refuses_a_compensated_model_of_another_structure(
    model: nn.Module, data: list[tuple[Tensor, Tensor]]
) -> None:
    small = fxprune.prune(model, 0.5, data=data)
    changed = copy.deepcopy(small)
    changed.head = nn.Linear(changed.head.in_features, 7)
    with pytest.raises(fxprune.FxpruneError, match="not what its plan makes"):
        fxprune.verify(model, changed)


@pytest.mark.parametrize("method", ["dagger", "surgeon", "fisher", "taylor"])
def test_says_that_a_method_needs_data(method: str) -> None:
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(fxprune.FxpruneError, match="needs data"):
        fxprune.prune(plain, 0.5, example_inputs=torch.zeros(1, 5), method=method)


def test_the_model_is_not_changed(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxprune.prune(model, 0.5, data=data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", [None, "dagger"])
def test_without_data_a_batch_is_made_from_the_model(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], method: str | None
) -> None:
    # What BatchNorm remembers is what the model has seen.
    model.train()
    with torch.no_grad():
        for _ in range(20):
            for image, _ in data:
                model(image)
    model.eval()
    small = fxprune.prune(model, 0.5, example_inputs=torch.zeros(1, 1, 10, 10), method=method)
    assert pruning_notes(small).compensated
    assert fxprune.verify(model, small) < 1e-9


class _Heads(nn.Module):
    """Several outputs, none of them class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.depth, self.boxes = nn.Linear(12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).flatten(1)
        return {"depth": self.depth(x).squeeze(1), "boxes": self.boxes(x)}


@pytest.mark.parametrize("labels", ["no data", None, torch.linspace(0, 1, 16)])
def test_outputs_that_are_no_class_scores_are_scored_too(labels: Any) -> None:
    torch.manual_seed(0)
    model = _Heads().eval()
    images = torch.randn(16, 3, 8, 8)
    data = None if labels == "no data" else [(images, labels)]
    small = fxprune.prune(model, 0.5, example_inputs=images[:1], data=data)
    assert fxprune.count_flops(small, images[:1]) <= 0.5 * fxprune.count_flops(model, images[:1])
    assert fxprune.verify(model, small) <= 1e-9


def test_what_cannot_be_is_said_before_a_batch_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.api.make_samples", lambda *_, **__: pytest.fail("a batch was made"))
    model, images = _Heads().eval(), torch.randn(1, 3, 8, 8)
    with pytest.raises(fxprune.FxpruneError, match="budget"):
        fxprune.prune(model, 0.001, example_inputs=images)
    with pytest.raises(fxprune.FxpruneError, match="is not known"):
        fxprune.prune(model, 0.5, example_inputs=images, method="l3")


def test_labels_that_are_no_classes_of_the_model_are_refused(model: nn.Module) -> None:
    data = [(torch.randn(2, 1, 10, 10), torch.tensor([1, 7]))]
    graph = fxprune.analyze(fxprune.trace(model, data[0][0]))
    for act in (
        lambda: fxprune.prune(model, 0.6, data=data),
        lambda: fxprune.scores(graph, "fisher", data=data),
        lambda: fxprune.scores(graph, "surgeon", data=data),
        lambda: fxprune.learn_gates(graph, data, progress=False),
    ):
        with pytest.raises(fxprune.FxpruneError, match="label 7"):
            act()


def test_data_without_a_batch_dimension_is_told_as_such(model: nn.Module) -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"first sample of data, of shape \(1, 10, 10\): data must"):
        fxprune.prune(model, 0.6, data=list(torch.randn(2, 3, 10, 10)))


def test_a_name_is_no_model() -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"model \(a str\) is no nn.Module: build it"):
        fxprune.prune("resnet50", 0.5)  # type: ignore[arg-type]


def test_a_model_with_spectral_norm_is_its_own_teacher_and_its_own_original(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(6, 4)
    # What the hook computed stands in the model now, and torch cannot copy it.
    model(x)
    small = fxprune.prune(model, flops=0.5, example_inputs=x)
    fxprune.save(small, tmp_path / "small.safetensors")
    again = fxprune.load(tmp_path / "small.safetensors", original=model)
    assert torch.equal(again.eval()(x), small.eval()(x))
    fxprune.finetune(small, [(x, torch.arange(6) % 2)], epochs=1, teacher=model)


class CountsCalls(nn.Module):
    """Changes a buffer in each call, in eval too."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.convs(x).mean((2, 3)))


@pytest.mark.parametrize(
    "settings",
    [{"compensate": False}, {"data": True}, {"data": True, "method": "fisher"}, {"data": True, "method": "dagger"}, {}],
    ids=str,
)
def test_neither_buffers_nor_random_states_are_touched(settings: dict[str, Any]) -> None:
    model = CountsCalls()
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    data = {"data": [torch.zeros(4, 3, 8, 8)]} if settings.pop("data", False) else {}
    small = fxprune.prune(model, example_inputs=torch.zeros(1, 3, 8, 8), progress=False, **settings, **data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert small.get_buffer("calls") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flops": 0}, r"^flops \(=0\) must be positive"),
        ({"latency": 2}, r"^latency \(=2\) must be a fraction"),
        ({"round_to": 0}, r"^round_to \(=0\) must be a whole number"),
        ({"ignore": "nothing"}, r"^ignore pattern 'nothing' matches no module"),
        ({"quality": "good"}, r"^quality \(='good'\) must be 'fast', 'normal' or 'best'$"),
        ({"method": "l3"}, r"^method \(='l3'\) is not known: use one of .*'dagger'"),
        ({"method": lambda graph: np.ones(3)}, r"^scores have shape \(3,\)"),
        ({"samples": 0, "data": [torch.zeros(2, 3, 6, 6)]}, r"^size \(=0\) must be at least 1"),
        ({"progress": "yes"}, r"^progress \(='yes'\) must be True, False or a function"),
        ({"flops": 0.001}, r"^a budget of \d+ FLOPs \(0\.1%\) cannot be reached"),
        ({"flops": 50}, r"If 50 % was meant, give 0\.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_wrong_is_said_and_the_model_left_as_it_was(arguments: dict[str, Any], message: str) -> None:
    model = small()
    assert_refused(model, lambda: fxprune.prune(model, example_inputs=image(), **arguments), message)


def test_a_budget_of_latency_is_checked_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.api.time_channels", lambda *_, **__: pytest.fail("channels were timed"))
    with pytest.raises(fxprune.UnreachableBudgetError, match="cannot be reached"):
        fxprune.prune(small(), 0.001, latency=0.9, example_inputs=image())

"""`prune` with its defaults, which score on samples and compensate, crashes on no net and changes none."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_nets import OPS, Step, build
from torch import Tensor, nn

import fxprune
from fxprune.provenance import pruning_notes


def description(seed: int) -> tuple[list[Step], int, int]:
    chosen = random.Random(seed)
    steps = [
        Step(chosen.choice(sorted(OPS)), chosen.randrange(4), chosen.randrange(6), chosen.randrange(24))
        for _ in range(chosen.randint(1, 6))
    ]
    return steps, chosen.randint(1, 2), chosen.randint(1, 3)


def prepare(model: nn.Module) -> None:
    """Give it mixed modes, gradients and frozen parameters, as in the middle of training."""
    for k, module in enumerate(model.modules()):
        module.training = k % 3 != 2
    for k, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if k % 4 == 1 else None
        parameter.requires_grad_(k % 5 != 3)


def state(model: nn.Module, inputs: Any) -> list[Any]:
    """Everything that must stay the same to the last bit."""

    def bits(tensor: Tensor | None) -> Any:
        return None if tensor is None else (tensor.dtype, tensor.shape, tensor.detach().numpy().tobytes())

    return [
        [(name, bits(tensor)) for name, tensor in [*model.named_parameters(), *model.named_buffers()]],
        [(name, p.requires_grad, bits(p.grad)) for name, p in model.named_parameters()],
        [(name, module.training) for name, module in model.named_modules()],
        [bits(tensor) for tensor in inputs],
        bits(torch.get_rng_state()),
    ]


@pytest.mark.filterwarnings("ignore:cut by relevance and not compensated:UserWarning")
@pytest.mark.parametrize("with_data", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize("seed", range(6))
def test_prune_takes_any_net_and_does_not_change_it(seed: int, with_data: bool) -> None:
    model, inputs = build(description(seed))
    prepare(model)
    before = state(model, inputs)
    data = [(inputs, None)] if with_data else None
    try:
        pruned = fxprune.prune(model, 0.85, example_inputs=inputs, data=data, progress=False)
    except fxprune.FxpruneError:
        pruned = None
    assert state(model, inputs) == before
    if pruned is not None:
        assert fxprune.verify(model, pruned, inputs) <= 1e-6


class AnyNumber(nn.Module):
    """Takes any number of images and sums their features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 1)

    def forward(self, *images: Tensor) -> Tensor:
        return self.b(torch.stack([self.a(image).relu() for image in images]).sum(0))


@pytest.mark.parametrize("number", [1, 2])
def test_a_model_with_any_number_of_inputs_is_compensated(number: int) -> None:
    torch.manual_seed(0)
    model, images = AnyNumber(), torch.randn(number, 4, 3, 6, 6).unbind(0)
    pruned = fxprune.prune(model, 0.6, example_inputs=images, data=[(images, None)], progress=False)
    # Ridge regression on the wrong inputs would be discarded.
    assert "ridge" in pruning_notes(pruned).compensated
    assert fxprune.verify(model, pruned, images) <= 1e-9


class OneConvolutionASample(nn.Module):
    """The samples of a batch stand along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.bank = nn.Parameter(torch.randn(6, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu()
        samples, channels, *size = x.shape
        weight = self.bank.expand(samples, -1, -1, -1, -1).reshape(-1, channels, 1, 1)
        mixed = nn.functional.conv2d(x.reshape(1, -1, *size), weight, groups=samples)
        return self.head(mixed.reshape(samples, channels, *size)).mean((2, 3))


class NamesTheClass(nn.Sequential):
    """Its outputs are not floating-point."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class BranchesOnTheBatch(nn.Sequential):
    """Its graph is that of the example, of small batches, and refuses others."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[0] < 4 else super().forward(-x)


class Overflows(nn.Sequential):
    """Some of its outputs are infinite, except in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) * 400).exp()


def layers() -> tuple[nn.Module, ...]:
    return nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)


UNSCORED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "channels are counted by samples": (OneConvolutionASample, "channels of .* number of samples"),
    "no floating-point outputs": (lambda: NamesTheClass(*layers()), "floating-point outputs"),
    "batches of other sizes are refused": (lambda: BranchesOnTheBatch(*layers()), r"`x\.size\(0\) < 4` is False here"),
    "outputs are infinite": (lambda: Overflows(*layers()), "scores are not finite"),
}


@pytest.mark.parametrize("case", UNSCORED)
def test_a_model_that_cannot_be_scored_on_samples_is_cut_by_relevance_with_a_warning(case: str) -> None:
    make, message = UNSCORED[case]
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(20, 3, 8, 8)
    with pytest.warns(fxprune.FxpruneWarning, match=f"^cut by relevance and not compensated: .*{message}"):
        small = fxprune.prune(model, 0.6, example_inputs=images[:2], data=[images])
    assert fxprune.verify(model, small) <= 1e-9
    by_relevance = fxprune.prune(model, 0.6, example_inputs=images[:2], method="relevance", compensate=False)
    assert fxprune.plan_of(small) == fxprune.plan_of(by_relevance)
    with pytest.raises(fxprune.CannotScoreError, match=message):
        fxprune.prune(model, 0.6, example_inputs=images[:2], data=[images], method="surgeon")


@pytest.mark.parametrize("stage", ["api.scores", "api.plan_for", "depth.rewrite", "api.Compensation.of"])
def test_any_other_error_is_not_taken_for_that(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise fxprune.FxpruneError("a bug")

    monkeypatch.setattr(f"fxprune.{stage}", fail)
    with pytest.raises(fxprune.FxpruneError, match=r"^a bug$"):
        fxprune.prune(nn.Sequential(*layers()), 0.6, data=[torch.randn(8, 3, 8, 8)])


def test_a_pruned_model_that_does_not_run_is_a_bug_and_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: fxprune.ChannelGraph, plan: fxprune.Plan) -> Any:
        pruned = fxprune.rewrite(graph, plan)
        pruned.get_submodule("2").weight = nn.Parameter(torch.zeros(8, 1, 1, 1))
        return pruned

    monkeypatch.setattr("fxprune.depth.rewrite", wrong)
    with pytest.raises(fxprune.FxpruneError, match="does not run on data of shapes") as caught:
        fxprune.prune(nn.Sequential(*layers()), 0.6, data=[torch.randn(8, 3, 8, 8)])
    assert not isinstance(caught.value, fxprune.CannotScoreError)


def test_samples_are_checked_and_compared_with_each_other_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        module, _, function = name.rpartition(".")
        original = getattr(importlib.import_module(module), function)
        monkeypatch.setattr(name, lambda *given: calls.append(function) or original(*given))

    counted("fxprune.data._check_values")
    counted("fxprune.compensation.holdout._likeness")
    small = fxprune.prune(nn.Sequential(*layers()), 0.6, data=[torch.randn(24, 3, 8, 8)])
    assert pruning_notes(small).compensated
    assert calls == ["_check_values", "_likeness"]

"""A model that is pruned several times is the original, pruned once by the composed plan."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from invariant import image, net, randomise, tokens
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.planning.plan import plan_since


def again(model: nn.Module, x: Any, times: int = 2, flops: float = 0.6) -> list[torch.fx.GraphModule]:
    """What a model is pruned to, each from the one before."""
    stages: list[torch.fx.GraphModule] = []
    for _ in range(times):
        before = stages[-1] if stages else model
        stages.append(fxprune.prune(before, flops, example_inputs=x, compensate=False))
    return stages


def attention(self: Any, x: Tensor) -> Tensor:
    b, n = x.shape[:2]
    q, k, v = self.qkv(x).reshape(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


def scaled(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    first, second = y.split(y.shape[-1] // 2, -1)
    return self.b(torch.cat([first, second.tanh()], -1) / y.shape[-1] ** 0.5)


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "layer norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 16),
            nn.LayerNorm(16),
            nn.GELU(),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 64),
            nn.LayerNorm(64),
            nn.Linear(64, 2),
        ),
        tokens(),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 2, 1)),
        image(),
    ),
    "instance and batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 16, 1, groups=16),
            nn.InstanceNorm2d(16),
            nn.Conv2d(16, 2, 1),
        ),
        image(),
    ),
    "mean over channels": (
        lambda: net(
            lambda self, x: self.b(self.a(x).relu()) * self.a(x).mean(1, keepdim=True) + self.a(x).sum(1, True) / 16,
            a=nn.Conv2d(3, 16, 1),
            b=nn.Conv2d(16, 4, 1),
        ),
        image(),
    ),
    "attention": (lambda: net(attention, qkv=nn.Linear(4, 48), out=nn.Linear(16, 4)), tokens()),
    "split and scale": (lambda: net(scaled, a=nn.Linear(4, 16), b=nn.Linear(16, 3)), tokens()),
    "sizes in the code": (
        lambda: net(
            lambda self, x: self.b(self.a(x).view(-1, 16 * 36) / 16), a=nn.Conv2d(3, 16, 1), b=nn.Linear(576, 2)
        ),
        image(),
    ),
    "recurrent": (lambda: net(lambda self, x: self.b(self.a(x)[0]), a=nn.GRU(4, 16), b=nn.Linear(16, 2)), tokens()),
    "multi-head module": (
        lambda: net(
            lambda self, x: self.b(self.m(self.a(x), self.a(x), self.a(x))[0]),
            a=nn.Linear(4, 8),
            m=nn.MultiheadAttention(8, 2, batch_first=True),
            b=nn.Linear(8, 2),
        ),
        tokens(),
    ),
    "a constant": (
        lambda: net(lambda self, x: self.b(self.a(x) * torch.arange(12.0)), a=nn.Linear(4, 12), b=nn.Linear(12, 2)),
        tokens(),
    ),
    "a transformer layer": (lambda: nn.TransformerEncoderLayer(4, 2, 32, batch_first=True), tokens()),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_composed_plan_is_the_originals(kind: str, tmp_path: Path) -> None:
    make, x = MODELS[kind]
    torch.manual_seed(0)
    model, x = randomise(make()), x.double()
    once, twice, thrice = again(model, x, 3, 0.75)
    for stage in (twice, thrice):
        plan = fxprune.plan_of(stage)
        assert plan.flops == fxprune.count_flops(stage, x) < fxprune.count_flops(once, x)
        assert plan.flops_before == fxprune.count_flops(model, x)
        assert fxprune.verify(model, stage) <= 1e-12
        for name, tensor in model.state_dict().items():
            assert torch.equal(plan.cut(name, tensor), stage.state_dict()[name]), name
    assert fxprune.verify(once, twice) <= 1e-12
    assert fxprune.verify(once, thrice) <= 1e-12
    assert fxprune.verify(twice, thrice) <= 1e-12
    fxprune.save(thrice, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=randomise(make()))
    assert torch.equal(loaded(x), thrice(x))
    assert fxprune.plan_of(loaded) == fxprune.plan_of(thrice)
    assert fxprune.verify(model, loaded, x) <= 1e-12
    report = fxprune.report(thrice, original=model, repeats=1)
    assert report.certificate is not None
    assert (report.certificate.holds, report.certificate.of) == (True, "outputs")
    assert report.flops.before == fxprune.count_flops(model, x)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def test_a_wrong_weight_of_a_model_that_was_pruned_twice_is_noticed() -> None:
    model, x = two_layers(), torch.randn(3, 4)
    _, twice = again(model, x)
    with torch.no_grad():
        twice.get_parameter("2.weight").add_(1e-2)
    assert fxprune.verify(model, twice) > 1e-6


def test_what_a_model_was_not_made_from_is_refused() -> None:
    model, x = two_layers(), torch.randn(3, 4)
    once, twice = again(model, x)
    with pytest.raises(FxpruneError, match="was pruned itself, and this model was not made from it"):
        fxprune.verify(twice, once)
    other = fxprune.prune(two_layers(), 0.6, example_inputs=x, method="random", compensate=False, seed=3)
    with pytest.raises(FxpruneError, match="was pruned itself, and this model was not made from it"):
        fxprune.verify(other, twice)
    bare = fxprune.restore_class(model, once)
    with pytest.raises(FxpruneError, match="not the model that was pruned"):
        fxprune.verify(bare, twice)


def test_a_model_that_was_changed_after_the_first_pruning_is_an_original_of_its_own() -> None:
    model, x = two_layers(), torch.randn(3, 4)
    (once,) = again(model, x, 1)
    layer = once.get_submodule("4")
    once.add_module("4", nn.Linear(layer.weight.shape[1], 7))
    twice = fxprune.prune(once, 0.6, example_inputs=x, compensate=False)
    assert fxprune.plan_of(twice).flops_before == fxprune.count_flops(once, x)
    assert fxprune.verify(once, twice) <= 1e-12
    with pytest.raises(FxpruneError, match="not the model that was pruned"):
        fxprune.verify(model, twice)


def test_compensated_stages_are_verified_in_structure_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1)
    ).eval()
    data = [torch.randn(32, 3, 8, 8)]
    once = fxprune.prune(model, 0.6, data=data)
    twice = fxprune.prune(once, 0.6, data=data)
    assert fxprune.verify(model, twice) <= 1e-9
    assert fxprune.verify(once, twice) <= 1e-9
    fxprune.save(twice, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=model)
    assert torch.equal(loaded(data[0]), twice(data[0]))
    fitted = fxprune.compensate(model, twice, data)
    assert fxprune.verify(model, fitted) <= 1e-9


def test_a_model_that_a_file_names_comes_back_by_its_name(tmp_path: Path) -> None:
    model = fxprune.models.load_model("torchvision:resnet18", pretrained=False, num_classes=5).eval()
    x = torch.randn(1, 3, 32, 32)
    _, twice = again(model, x)
    fxprune.save(twice, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), twice(x))
    thrice = fxprune.prune(loaded, 0.6, example_inputs=x, compensate=False)
    assert fxprune.verify(model, thrice) <= 1e-9


@pytest.mark.parametrize("stage", ["model", "once"])
def test_an_optimizer_goes_on_from_the_original_or_from_the_stage_before(stage: str) -> None:
    model, x = two_layers(), torch.randn(3, 4)
    once, twice = again(model, x)
    before = {"model": model, "once": once}[stage]
    optimizer = torch.optim.SGD(before.parameters(), lr=0.1, momentum=0.9)
    before(x).sum().backward()
    optimizer.step()
    cut = fxprune.prune_optimizer(before, twice, optimizer)
    plan = plan_since(fxprune.plan_of(once), fxprune.plan_of(twice)) if stage == "once" else fxprune.plan_of(twice)
    for name, parameter in before.named_parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        partner = twice.get_parameter(name)
        assert torch.equal(plan.cut(name, momentum), cut.state[partner]["momentum_buffer"])


def test_the_class_is_restored_from_the_original() -> None:
    model, x = two_layers(), torch.randn(3, 4)
    _, twice = again(model, x)
    restored = fxprune.restore_class(model, twice)
    assert type(restored) is nn.Sequential
    torch.testing.assert_close(restored(x), twice(x))


def test_copies_and_traces_of_a_pruned_model_know_the_original() -> None:
    model, x = two_layers(), torch.randn(3, 4)
    (once,) = again(model, x, 1)
    for before in (copy.deepcopy(once), fxprune.trace(once, x)):
        twice = fxprune.prune(before, 0.6, example_inputs=x, compensate=False)
        assert fxprune.verify(model, twice) <= 1e-12

"""The samples that fxprune takes if the user gives none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels import ChannelGraph
from fxprune.compensation.photographs import PHOTOGRAPHS, SCALES, crops
from fxprune.compensation.samples import make_samples
from fxprune.compensation.synthesis import mismatch
from fxprune.errors import CannotScoreError
from fxprune.provenance import pruning_notes


def net(channels: int = 3, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2), norm(12), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def analysed(model: nn.Module, example: Any) -> ChannelGraph:
    return fxprune.analyze(fxprune.trace(model.eval(), example))


def seen(model: nn.Module, images: Tensor) -> nn.Module:
    """The model after its BatchNorms have seen images."""
    model.train()
    for _ in range(60):
        model(images)
    return model.eval()


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.name)
def test_batchnorm_statistics_tell_the_scale_of_pixels(scale: Any) -> None:
    model = seen(net(), scale(crops(32, 3, (32, 32), seed=5)))
    graph = analysed(model, torch.zeros(1, 3, 32, 32))
    made = make_samples(graph, 20)
    assert made is not None
    assert made.origin.startswith(f"20 crops of photographs, {scale.name}")
    # Crops of one photograph are in one cluster.
    assert made.batch.clusters is not None
    assert made.batch.clusters[PHOTOGRAPHS:].tolist() == [0, 1, 2, 3, 4]
    assert mismatch(graph.module, made.batch.args[0]) < 0.1


def test_photographs_are_fitted_where_the_model_was_trained_on_something_else() -> None:
    stripes = (torch.arange(32) // 2 % 2 * 1.0).expand(16, 1, 32, 32) + 0.02 * torch.randn(16, 1, 32, 32)
    graph = analysed(seen(net(1), stripes), torch.zeros(1, 1, 32, 32))
    made = make_samples(graph)
    assert made is not None
    assert "crops of photographs, fitted to BatchNorm statistics (mismatch from" in made.origin
    plain = min(mismatch(graph.module, scale(crops(32, 1, (32, 32)))) for scale in SCALES)
    assert mismatch(graph.module, made.batch.args[0]) < 0.3 * plain


@pytest.mark.parametrize(
    ("example", "low", "high"),
    [(torch.rand(1, 3, 32, 32), 0, 1), (255 * torch.rand(1, 3, 32, 32), 0, 255), (torch.zeros(1, 3, 32, 32), -3, 3)],
    ids=["fractions", "bytes", "nothing known"],
)
def test_without_statistics_the_example_tells_the_scale(example: Tensor, low: int, high: int) -> None:
    made = make_samples(analysed(net(norm=nn.InstanceNorm2d), example), 20)
    assert made is not None
    (images,) = made.batch.args
    assert low <= float(images.min()) < float(images.max()) <= high
    assert float(images.max()) > 0.5 * high


def test_the_configuration_of_a_model_tells_the_scale() -> None:
    model = net(norm=nn.InstanceNorm2d)
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}  # type: ignore[assignment]
    made = make_samples(analysed(model, torch.randn(1, 3, 32, 32)), 20)
    assert made is not None
    images = made.batch.args[0] * 0.5 + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(images, crops(20, 3, (32, 32)))


def test_what_is_no_image_gets_inputs_with_the_statistics() -> None:
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    for _ in range(60):
        model(3 + torch.randn(32, 10))
    made = make_samples(analysed(model, torch.zeros(1, 10)))
    assert made is not None
    assert made.batch.args[0].shape == (256, 10)
    assert "inputs of noise, fitted to BatchNorm statistics" in made.origin


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), torch.zeros(1, 5, dtype=torch.long)),
        (nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 10)),
        (net().double().bfloat16(), torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)),
    ],
    ids=["ids", "no image and no BatchNorm", "bfloat16"],
)
def test_there_are_none(model: nn.Module, example: Tensor) -> None:
    assert make_samples(analysed(model, example)) is None


def test_a_model_of_one_batch_size_says_so() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.reshape(1, 3, 32, 32))

    with pytest.raises(CannotScoreError, match="does not run on data of shapes"):
        make_samples(analysed(Fixed(), torch.zeros(1, 3, 32, 32)))


def test_the_result_and_its_report_say_what_was_taken(tmp_path: Path) -> None:
    model = net(norm=nn.InstanceNorm2d).eval()
    small = fxprune.prune(model, 0.6, example_inputs=torch.rand(1, 3, 32, 32), progress=False)
    fxprune.save(small, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=model)
    for pruned in (small, loaded):
        facts = fxprune.report(pruned, original=model, measure=False)
        assert facts.samples == "128 crops of photographs, from 0 to 1"
        assert "128 crops of photographs, from 0 to 1" in " ".join(str(facts).split())
    given = fxprune.prune(model, 0.6, data=[torch.rand(8, 3, 32, 32)], progress=False)
    assert fxprune.report(given, original=model, measure=False).samples == ""


def test_a_model_without_samples_is_told_so() -> None:
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(fxprune.FxpruneWarning, match="cut by relevance and not compensated: .*give data"):
        small = fxprune.prune(model, 0.6, example_inputs=torch.zeros(1, 10), progress=False)
    assert not pruning_notes(small).compensated
    assert fxprune.verify(model, small) < 1e-9
    with pytest.warns(fxprune.FxpruneWarning, match="^not compensated: .*give data"):
        fxprune.prune(model, 0.6, example_inputs=torch.zeros(1, 10), method="l2", progress=False)

"""Models that cannot be traced as a whole are pruned in parts, to a budget of the whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, UnreachableBudgetError
from fxprune.parts import PrunedParts, prune_parts
from fxprune.running import trees
from fxprune.verification import TOLERANCE, mask


def backbone(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.Conv2d(2 * width, 8, 1), nn.ReLU()),
    )


class Head(nn.Module):
    """Has a loss, as heads of detectors do; the detector asks it for that in training."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 5, 1))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        scores, boxes = self.tower(x).flatten(2).split([1, 4], 1)
        return {"scores": scores[:, 0], "boxes": boxes.transpose(1, 2) * scale}

    def compute_loss(self, found: dict[str, Tensor]) -> Tensor:
        return found["scores"].square().mean() + found["boxes"].abs().mean()


class Detector(nn.Module):
    """Takes a list of images; how many boxes it returns depends on their values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = backbone(), Head()
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, images: list[Tensor]) -> Any:
        features = self.backbone(torch.stack(images))
        # Two levels, by the same head.
        levels = [self.head(features), self.head(features[..., ::2, ::2], scale=2.0)]
        if self.training:
            return {"loss": sum(map(self.head.compute_loss, levels))}
        scores, boxes = (torch.cat([level[key] for level in levels], 1) for key in ("scores", "boxes"))
        return [
            {"boxes": b[s > s.mean()], "scores": s[s > s.mean()]}
            for s, b in zip(scores, boxes, strict=True)
            if s.max() >= s.mean()
        ]


def images(count: int = 1, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(3, size, size, generator=generator) for _ in range(count)]


def made(build: Callable[[], nn.Module] = Detector) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    return model.eval()


def check(model: nn.Module, found: PrunedParts, *inputs: list[Tensor]) -> None:
    """The whole, with all that it does with boxes, is the zero-masked original."""
    kept = {f"{path}.{name}": dims for path, plan in found.plans.items() for name, dims in plan.kept.items()}
    plan = replace(next(iter(found.plans.values())), kept=kept)
    masked, small = mask(model, plan).double().eval(), copy.deepcopy(found.model).double().eval()
    assert type(found.model) is type(model)
    for batch in inputs:
        expected, got = (each([image.double() for image in batch]) for each in (masked, small))
        assert len(trees.tensors(expected)) > 0
        assert sum(tensor.numel() for tensor in trees.tensors(expected)) > 0
        for a, b in zip(trees.tensors(expected), trees.tensors(got), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    for path in found.plans:
        assert fxprune.verify(model.get_submodule(path), found.model.get_submodule(path)) <= TOLERANCE


@pytest.mark.parametrize("flops", [0.5, 0.8, 100_000])
def test_the_whole_meets_the_budget_and_is_the_masked_original(flops: float) -> None:
    model, example = made(), (images(),)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FxpruneError, match=r"depends on the values.*fxprune\.prune_parts"):
        fxprune.prune(model, flops, example_inputs=example)
    found = prune_parts(model, flops, example_inputs=example, compensate=False, progress=False)
    whole = fxprune.count_flops(model, example)
    target = flops * whole if flops <= 1 else flops
    assert found.flops_before == whole
    assert 0.95 * target <= found.flops == fxprune.count_flops(found.model, example) <= target
    assert list(found.plans) == ["backbone", "head"]
    assert str(found) == f"Detector: {found.flops / whole:.4f} of the FLOPs of the whole, pruned in backbone, head"
    check(model, found, images(), images(2), images(3, 24))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert pickle.loads(pickle.dumps(found.model))(images())[0].keys() == {"boxes", "scores"}


def test_it_trains_as_before_with_the_methods_of_its_parts() -> None:
    model = made().train()
    found = prune_parts(model, example_inputs=(images(),), compensate=False, progress=False)
    assert found.model.training
    assert isinstance(found.model.get_submodule("head"), Head)
    found.model(images(2))["loss"].backward()
    assert all(p.grad is not None for name, p in found.model.named_parameters() if not name.startswith("unused"))


def test_it_is_compensated_on_what_the_parts_get_of_the_data() -> None:
    model = made()
    data = [(images(8), None), (images(4), ["a label"])]
    found = prune_parts(model, 0.6, example_inputs=(images(),), data=data, progress=False)
    assert 0.57 <= found.flops / found.flops_before <= 0.6
    assert any(fxprune.provenance.pruning_notes(found.model.get_submodule(path)).compensated for path in found.plans)


def test_parts_that_are_named_are_pruned_and_others_are_not() -> None:
    model = made()
    found = prune_parts(model, 0.7, example_inputs=(images(),), parts=["backbone"], compensate=False, progress=False)
    assert list(found.plans) == ["backbone"]
    assert 0.68 <= found.flops / found.flops_before <= 0.7
    check(model, found, images(2))


class FixedWidth(Head):
    """Its own class cannot have another width."""

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        return super().forward(x + self.tower[1](self.tower[0](x)).view(-1, 12, *x.shape[2:])[:, :1])


def test_a_part_whose_class_takes_no_other_width_is_a_graph_and_that_is_said() -> None:
    def build() -> nn.Module:
        model = Detector()
        model.head = FixedWidth()
        return model

    found = prune_parts(made(build), example_inputs=(images(),), compensate=False, progress=False)
    assert not isinstance(found.model.get_submodule("head"), Head)
    assert any("head is a graph without the methods compute_loss: FixedWidth" in remark for remark in found.remarks)


class Tied(Detector):
    """Another module has the first weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 16, 3)
        self.again.weight = self.backbone.get_parameter("0.weight")  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (Detector, {"parts": ["no.such"]}, "'no.such', which is no module inside Detector"),
        (Detector, {"parts": ["head", "head.tower"]}, "'head.tower' and a module around it"),
        (Detector, {"parts": ["unused"]}, "unused is not called when Detector runs"),
        (Tied, {"parts": ["backbone"]}, "backbone shares weights with other parts of Tied"),
        (Detector, {"flops": -1}, r"flops \(=-1\) must be positive"),
        (nn.Flatten, {"example_inputs": torch.zeros(1, 3)}, "no part of Flatten can be pruned"),
    ],
)
def test_what_cannot_be_done_is_refused(
    build: Callable[[], nn.Module], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(FxpruneError, match=message):
        prune_parts(made(build), **{"example_inputs": (images(),), **arguments})


def test_a_budget_below_what_the_parts_can_give_is_refused() -> None:
    with pytest.raises(UnreachableBudgetError, match=r"cannot be reached: head have .* of the FLOPs, and with one"):
        prune_parts(made(), 0.3, example_inputs=(images(),), parts=["head"])


def test_parts_with_tied_weights_are_left_whole() -> None:
    found = prune_parts(made(Tied), 0.9, example_inputs=(images(),), compensate=False, progress=False)
    assert "backbone" not in found.plans
    assert found.flops <= 0.9 * found.flops_before


# --- torchvision ------------------------------------------------------------------------------------------------------

TARGETS = [{"boxes": torch.tensor([[2.0, 2.0, 40.0, 50.0]]), "labels": torch.tensor([1])}] * 2


def pyramid() -> nn.Module:
    utils = pytest.importorskip("torchvision.models.detection.backbone_utils")
    layers = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
    )
    found: nn.Module = utils.BackboneWithFPN(layers, {"1": "0", "3": "1"}, [16, 32], 32)
    return found


def detector(name: str) -> nn.Module:
    detection = pytest.importorskip("torchvision.models.detection")
    anchors = detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    sizes = {"num_classes": 3, "min_size": 64, "max_size": 64}
    if name == "FasterRCNN":
        return detection.FasterRCNN(pyramid(), rpn_anchor_generator=anchors, box_score_thresh=0.0, **sizes)
    return getattr(detection, name)(pyramid(), anchor_generator=anchors, score_thresh=0.0, **sizes)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("RetinaNet", ["backbone", "head"]),
        ("FCOS", ["backbone", "head"]),
        ("FasterRCNN", ["backbone", "rpn.head", "roi_heads.box_head"]),
    ],
)
def test_a_detector_of_torchvision(name: str, parts: list[str]) -> None:
    model, example = made(lambda: detector(name)), (images(size=64),)
    found = prune_parts(model, 0.6, example_inputs=example, compensate=False, progress=False)
    assert set(found.plans) <= set(parts)
    assert found.flops == fxprune.count_flops(found.model, example) <= 0.6 * fxprune.count_flops(model, example)
    check(model, found, images(size=64), images(2, 50))
    losses = found.model.train()(images(2, 64), TARGETS)
    sum(losses.values()).backward()
    assert losses.keys() == model.train()(images(2, 64), TARGETS).keys()

"""Small versions of torchvision models that are not classifiers: segmentation, video, optical flow, detectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from invariant import check_invariant, randomise
from torch import Tensor, nn

import fxprune
from fxprune.verification import TOLERANCE

torchvision = pytest.importorskip("torchvision")
from torchvision.models import detection, mobilenet_v3_small, optical_flow, segmentation, video  # noqa: E402
from torchvision.models._utils import IntermediateLayerGetter  # noqa: E402
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # noqa: E402


def image(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def clip(frames: int = 4, size: int = 16) -> Tensor:
    return torch.randn(1, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


LOW, HIGH = 8, 144


def features(**names: str) -> nn.Module:
    """The features of a narrow MobileNet at the given layers, by name."""
    layers = mobilenet_v3_small(weights=None, width_mult=0.25, dilated=True).features
    return IntermediateLayerGetter(layers, {layer.strip("_"): name for layer, name in names.items()})


def with_pyramid() -> nn.Module:
    layers = mobilenet_v3_small(weights=None, width_mult=0.25).features
    return BackboneWithFPN(layers, {"3": "0", "12": "1"}, [8, HIGH], 32)


def video_resnet(blocks: Any, stem: Any) -> nn.Module:
    return video.resnet.VideoResNet(video.resnet.BasicBlock, blocks, [1, 1, 1, 1], stem, num_classes=3)


def mvit() -> nn.Module:
    config = video.mvit.MSBlockConfig
    return video.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=[
            config(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
            config(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
        ],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=3,
    )


def swin3d() -> nn.Module:
    return video.swin_transformer.SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[2, 4, 4], num_classes=3
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "fcn": (lambda: segmentation.FCN(features(_12="out"), segmentation.fcn.FCNHead(HIGH, 3)), image()),
    "deeplabv3": (
        lambda: segmentation.DeepLabV3(features(_12="out"), segmentation.deeplabv3.DeepLabHead(HIGH, 3, (2, 4))),
        image(),
    ),
    "lraspp": (
        lambda: segmentation.LRASPP(features(_1="low", _12="high"), LOW, HIGH, 3, 16),
        image(),
    ),
    "r3d": (lambda: video_resnet([video.resnet.Conv3DSimple] * 4, video.resnet.BasicStem), clip()),
    "r2plus1d": (lambda: video_resnet([video.resnet.Conv2Plus1D] * 4, video.resnet.R2Plus1dStem), clip()),
    "mvit": (mvit, clip(4, 32)),
    "swin3d": (swin3d, clip(4, 32)),
    "feature pyramid": (with_pyramid, image()),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_torchvision_is_pruned_correctly(name: str) -> None:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    graph = check_invariant(make(), inputs, plans=1, other_batch=False)
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=0.5)
    assert 0.49 * plan.flops_before <= plan.flops <= plan.flops_target


def test_optical_flow_is_pruned_correctly() -> None:
    """The model creates its coordinates in float32, whatever the dtype of its weights."""
    raft = optical_flow.raft
    model = raft._raft(
        weights=None,
        progress=False,
        feature_encoder_layers=(8, 8, 12, 16, 16),
        feature_encoder_block=raft.BottleneckBlock,
        feature_encoder_norm_layer=nn.InstanceNorm2d,
        context_encoder_layers=(8, 8, 12, 16, 20),
        context_encoder_block=raft.BottleneckBlock,
        context_encoder_norm_layer=nn.BatchNorm2d,
        corr_block_num_levels=2,
        corr_block_radius=1,
        motion_encoder_corr_layers=(12,),
        motion_encoder_flow_layers=(8, 4),
        motion_encoder_out_channels=10,
        recurrent_block_hidden_state_size=12,
        recurrent_block_kernel_size=(3,),
        recurrent_block_padding=(1,),
        flow_head_hidden_size=6,
        use_mask_predictor=False,
    )
    forward = model.forward
    model.forward = partial(forward, num_flow_updates=2)
    frames = torch.randn(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    randomise(model).float()
    graph = fxprune.analyze(fxprune.trace(model, tuple(frames)))
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=0.5)
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(model, pruned, tuple(frames)) <= TOLERANCE
    assert fxprune.count_flops(pruned, tuple(frames)) == plan.flops


@pytest.mark.filterwarnings("ignore::fxprune.FxpruneWarning")
def test_a_detector_finds_as_many_boxes_as_the_masked_one_and_its_backbone_can_be_pruned_alone() -> None:
    model = detection.FCOS(with_pyramid(), num_classes=3, min_size=128, max_size=128, score_thresh=0.0).eval()
    model.anchor_generator = detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    small = fxprune.prune(model, 0.6, example_inputs=([image(128)[0]],), compensate=False)
    assert len(small([image(128)[0]])[0]["boxes"]) > 0
    assert fxprune.verify(model, small, ([image(96)[0]],)) <= TOLERANCE
    with pytest.raises(fxprune.FxpruneError, match=r"FCOS is a detector.*fxprune\.prune_parts"):
        fxprune.prune(model)
    before = [box.keys() for box in model([image(128)[0]])]
    model.backbone, whole = (
        fxprune.prune(model.backbone, flops=0.5, example_inputs=image(), compensate=False),
        model.backbone,
    )
    assert fxprune.verify(whole, model.backbone, image()) <= TOLERANCE
    assert [box.keys() for box in model([image(128)[0]])] == before


class Regions(nn.Module):
    """Crops boxes from the images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        regions = torchvision.ops.roi_align(self.a(x), boxes, 4)
        return self.c(self.b(regions).mean((2, 3)))


def test_an_op_that_takes_indices_as_numbers_is_probed_with_valid_ones() -> None:
    """With others it would read outside of the tensor."""
    boxes = torch.tensor([[0.0, 0, 0, 8, 8]] * 20)
    check_invariant(Regions(), (torch.randn(1, 3, 32, 32), boxes), 72, other_batch=False)

"""Small models of libraries that fxprune does not know, with random weights and inputs, for `libraries.py`.

`MODELS` maps each name to a function that makes model and inputs; a library is imported only when one is called.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LIBRARIES", "MODELS", "add"]

# The package to import -> the package to install.
LIBRARIES = {
    "transformers": "transformers",
    "diffusers": "diffusers",
    "torchaudio": "torchaudio",
    "open_clip": "open_clip_torch",
    "monai": "monai",
    "kornia": "kornia",
    "efficientnet_pytorch": "efficientnet_pytorch",
    "ultralytics": "ultralytics",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "pytorchcv": "pytorchcv",
    "vit_pytorch": "vit-pytorch",
    "x_transformers": "x-transformers",
    "spandrel": "spandrel",
    "super_image": "super-image",
    "speechbrain": "speechbrain",
    "asteroid": "asteroid",
    "encodec": "encodec",
    "vocos": "vocos",
    "pretrainedmodels": "pretrainedmodels",
    "torchseg": "torchseg",
    "segment_anything": "segment-anything",
    "facenet_pytorch": "facenet-pytorch",
    "resnest": "resnest",
    "denoising_diffusion_pytorch": "denoising-diffusion-pytorch",
    "doctr": "python-doctr",
    "dynamic_network_architectures": "dynamic-network-architectures",
    "onnx2torch": "onnx2torch",
    "rtdetr": "rtdetr",
    "mambapy": "mambapy",
}
MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


def add(
    library: str, module: str, maker: str, inputs: Any, /, *args: Any,
    label: Any = "", part: Any = "", inside: Any = None, **kwargs: Any,
) -> None:  # fmt: skip
    """Add `module.maker(*args, **kwargs)` to the models.

    Args:
        library: the package, for the model's name.
        module: the submodule that has the maker, "" for the package itself.
        maker: the name of a class or a function, with dots if need be.
        inputs: the shape of an input, a list of shapes, or a function that returns the inputs.
        label: the name (a str) instead of `maker`; if it starts with a space, it follows `maker`.
        part: the path (a str) of the submodule that is the model.
        inside: a function that puts it into the model, a `Read`, where all of its channels would be outputs.
    """

    def make() -> tuple[nn.Module, Any]:
        made = operator.attrgetter(maker)(importlib.import_module(f"{library}.{module}".rstrip(".")))(*args, **kwargs)
        given = inputs() if callable(inputs) else shaped(*inputs) if isinstance(inputs, list) else torch.randn(inputs)
        made = operator.attrgetter(part)(made) if part else made
        return (inside(made) if inside else made), given

    name = maker + label.replace(" ", "-") if label.startswith(" ") else label or maker
    name = f"{library}:{name}{part and '.' + part}"
    assert name not in MODELS, f"there are two models {name}"
    MODELS[name] = make


class Read(nn.Module):
    """A module of whose results only some are read, by a layer if there is one."""

    def __init__(self, module: nn.Module, read: Callable[[Any], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.read, self.layer = module, read, layer or nn.Identity()

    def forward(self, *args: Tensor) -> Any:
        return self.layer(self.read(self.module(*args)))


def shaped(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(map(torch.randn, shapes))


def named(**inputs: Any) -> Callable[[], dict[str, Any]]:
    """Inputs by name: a tuple is a shape, a list the values of a tensor."""
    return lambda: {
        name: torch.randn(given)
        if isinstance(given, tuple)
        else torch.tensor(given)
        if isinstance(given, list)
        else given
        for name, given in inputs.items()
    }


def _diffusers() -> None:
    diffusers = partial(add, "diffusers", "")
    steps, text = [3, 7], (2, 5, 24)
    norm: dict[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 4}
    blocks: dict[str, Any] = {"layers_per_block": 1, **norm}
    auto: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
    }
    heads = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2}
    unet = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    diffusers("UNet2DModel", named(sample=(2, 3, 16, 16), timestep=steps), sample_size=16, **unet, **blocks)
    diffusers(
        *("UNet2DConditionModel", named(sample=(2, 4, 16, 16), timestep=steps, encoder_hidden_states=text)),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **blocks | {"cross_attention_dim": 24, "attention_head_dim": 4},
    )
    diffusers(
        "ControlNetModel",
        named(sample=(2, 4, 16, 16), timestep=steps, encoder_hidden_states=text, controlnet_cond=(2, 3, 32, 32)),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 16),
        **blocks | {"cross_attention_dim": 24, "attention_head_dim": 4},
    )
    diffusers("AutoencoderKL", named(sample=(2, 3, 32, 32)), **auto)
    diffusers("VQModel", named(sample=(2, 3, 32, 32)), num_vq_embeddings=16, **auto)
    diffusers(
        *("AutoencoderTiny", named(sample=(2, 3, 32, 32))),
        **{"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)},
        **{"num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)},
    )
    diffusers(
        *("AutoencoderDC", named(sample=(2, 3, 32, 32))),
        latent_channels=4,
        attention_head_dim=8,
        **{f"{half}_block_out_channels": (16, 32) for half in ("encoder", "decoder")},
        **{f"{half}_layers_per_block": (1, 1) for half in ("encoder", "decoder")},
        **{f"{half}_block_types": ("ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")},
        **{f"{half}_qkv_multiscales": ((), (5,)) for half in ("encoder", "decoder")},
    )
    diffusers(
        *("DiTTransformer2DModel", named(hidden_states=(2, 4, 8, 8), timestep=steps, class_labels=[1, 2])),
        **heads | {"in_channels": 4, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10},
    )
    no_size = {"resolution": None, "aspect_ratio": None}
    diffusers(
        "PixArtTransformer2DModel",
        named(hidden_states=(2, 4, 8, 8), timestep=steps, encoder_hidden_states=text, added_cond_kwargs=no_size),
        **heads | {"in_channels": 4, "out_channels": 8, "sample_size": 8, "patch_size": 2},
        **{"cross_attention_dim": 32, "caption_channels": 24},
    )
    diffusers(
        *("Transformer2DModel", named(hidden_states=(2, 16, 8, 8), encoder_hidden_states=text)),
        **heads | {"in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 24},
    )
    diffusers(
        "SD3Transformer2DModel",
        named(hidden_states=(2, 4, 8, 8), encoder_hidden_states=text, pooled_projections=(2, 16), timestep=steps),
        **heads | {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "pos_embed_max_size": 16},
        **{"joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 16},
    )
    diffusers(
        "FluxTransformer2DModel",
        lambda: {
            **named(hidden_states=(1, 16, 8), encoder_hidden_states=(1, 5, 24), pooled_projections=(1, 16))(),
            **{"timestep": torch.tensor([0.5]), "img_ids": torch.rand(16, 3), "txt_ids": torch.rand(5, 3)},
        },
        **{"patch_size": 1, "in_channels": 8, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (4, 6, 6)},
        **{"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 16},
    )
    diffusers(
        *("SanaTransformer2DModel", named(hidden_states=(2, 4, 8, 8), encoder_hidden_states=text, timestep=steps)),
        **heads | {"in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8},
        **{"cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8},
    )
    diffusers(
        "PriorTransformer",
        named(hidden_states=(2, 24), timestep=steps, proj_embedding=(2, 24), encoder_hidden_states=(2, 7, 24)),
        **heads | {"embedding_dim": 24, "num_embeddings": 7, "additional_embeddings": 4},
    )


def _torchaudio() -> None:
    torchaudio = partial(add, "torchaudio", "models")
    two_lengths = [20, 13]
    torchaudio(
        *("Conformer", lambda: (torch.randn(2, 20, 32), torch.tensor(two_lengths)), 32, 4),
        **{"ffn_dim": 64, "num_layers": 2, "depthwise_conv_kernel_size": 7},
    )
    torchaudio("ConvTasNet", (2, 1, 400), 2, 16, 16, 3, 8, 16, 2, 2)
    torchaudio("Wav2Letter", (2, 13, 200), 10, "mfcc", 13)
    torchaudio("DeepSpeech", (2, 1, 20, 16), 16, 32, 10)
    torchaudio(
        *("Emformer", lambda: (torch.randn(2, 17, 32), torch.tensor([17, 13])), 32, 4, 64, 2, 4),
        right_context_length=1,
    )
    torchaudio("HDemucs", (1, 2, 8192), ["a", "b"], channels=8, nfft=256, depth=4)
    convolutions = [(16, 10, 5), (16, 4, 4), (16, 4, 4)]
    encoder = ("group_norm", convolutions, False, 32, 0.1, 8, 4, 2, 4)
    rest = (0.1, 64, 0.1, 0.1, False, 0.1, 10)
    torchaudio("wav2vec2_model", (2, 1600), *encoder, *rest)
    torchaudio("wavlm_model", (2, 1600), *encoder, 16, 32, *rest)
    torchaudio("WaveRNN", [(2, 1, 96), (2, 1, 8, 10)], [4, 4], 16, 16, 2, 16, 16, 5, 8, 8, 8)
    torchaudio(
        "Tacotron2",
        lambda: (torch.randint(0, 20, (2, 5)), torch.tensor([5, 5]), torch.randn(2, 8, 6), torch.tensor([6, 6])),
        **{"n_mels": 8, "n_symbol": 20, "encoder_n_convolution": 1, "attention_location_n_filter": 4},
        **{f"{name}_embedding_dim": 16 for name in ("symbol", "encoder", "postnet")},
        **{f"{name}_dim": 16 for name in ("attention_rnn", "attention_hidden", "decoder_rnn", "prenet")},
    )
    torchaudio("squim_objective_model", (2, 400), 16, 16, 16, 2, 8, 1, "LSTM", 8)


def _open_clip() -> None:
    vit = {"image_size": 64, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16}
    convolutions = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    pool = {"attentional_pool": True, "attn_pooler_queries": 8, "attn_pooler_heads": 4}
    text = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
    in_timm = {"timm_model_name": "resnet18", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}

    def pairs() -> tuple[Tensor, Tensor]:
        return torch.randn(2, 3, 64, 64), torch.randint(1, 98, (2, 12))

    clip = partial(add, "open_clip", "")
    for label, vision in (("ResNet", convolutions), ("ViT", vit), ("ViT-pooled", vit | {"ls_init_value": 0.1, **pool})):
        clip("CLIP", pairs, 32, vision, text, label=f"CLIP-{label}")
        clip("CLIP", (2, 3, 64, 64), 32, vision, text, label=f"CLIP-{label}", part="visual")
    clip("CustomTextCLIP", pairs, 32, in_timm | {"image_size": 64}, text)
    clip(
        *("CoCa", lambda: (pairs()[0], pairs()[1][:, :11]), 32),
        multimodal_cfg=text | {"context_length": 11, "mlp_ratio": 2.0, "layers": 1},
        text_cfg=text | {"context_length": 11, "embed_cls": True, "output_tokens": True},
        vision_cfg=vit | pool | {"output_tokens": True},
    )


def _monai() -> None:
    monai = partial(add, "monai", "networks.nets")
    flat, volume, picture = (1, 1, 32, 32), (1, 1, 32, 32, 32), (1, 3, 64, 64)
    widths, strides = (8, 16, 16), (2, 2, 2)
    monai("UNet", (1, 3, 32, 32), 2, 3, 2, (8, 16, 32), (2, 2), num_res_units=2, label=" 2d")
    monai("UNet", volume, 3, 1, 2, (8, 16, 32), (2, 2), num_res_units=2, norm="batch", act="mish", label=" 3d")
    monai("AutoEncoder", flat, 2, 1, 1, (4, 8, 16), strides)
    monai("VarAutoEncoder", flat, 2, (1, 32, 32), 1, 8, (4, 8, 16), strides)
    monai("FullyConnectedNet", (2, 10), 10, 3, [16, 32, 16], 0.1)
    monai("VarFullyConnectedNet", (2, 10), 10, 4, 3, [16, 8], [8, 16])
    monai("Generator", (2, 8), (8,), (16, 4, 4), (8, 8, 1), (2, 2, 1))
    monai("Discriminator", flat, (1, 32, 32), widths, strides)
    monai("Classifier", flat, (1, 32, 32), 5, widths, strides)
    monai("Regressor", flat, (1, 32, 32), (3,), widths, strides)
    monai("Critic", flat, (1, 32, 32), widths, strides)
    scores = partial(Read, read=operator.itemgetter(-1))
    monai("PatchDiscriminator", (1, 1, 64, 64), 2, 8, 1, inside=scores, label=" scores")
    monai("DenseNet", picture, 2, 3, 3, init_features=16, growth_rate=8, block_config=(2, 2, 2))
    monai("ViT", volume, 1, (32, 32, 32), (8, 8, 8), 48, 96, 3, 4, classification=True)
    monai("ViTAutoEnc", volume, 1, (32, 32, 32), (4, 4, 4), hidden_size=48, mlp_dim=96, num_layers=3, num_heads=4)
    monai("DecoderOnlyTransformer", lambda: torch.randint(0, 20, (1, 10)), 20, 16, 32, 2, 4)
    monai("SegResNet", (1, 3, 32, 32), 2, 8, 3, 2, upsample_mode="pixelshuffle", label=" 2d")
    monai("SegResNet", volume, 3, 8, 1, 2, label=" 3d")
    monai("SegResNetVAE", volume, (32, 32, 32), spatial_dims=3, init_filters=8, in_channels=1, out_channels=2)
    monai("SegResNetDS", volume, 3, 8, 1, 2)
    monai("HighResNet", (1, 3, 32, 32), 2, 3, 2)
    monai("BasicUNet", volume, 3, 1, 2, (8, 8, 16, 32, 64, 8))
    monai(
        *("DynUNet", volume, 3, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2]),
        **{"filters": [8, 16, 32, 64], "deep_supervision": True, "deep_supr_num": 2, "res_block": True},
    )
    monai("AttentionUnet", volume, 3, 1, 2, (8, 16, 32), (2, 2))
    monai("RegUNet", volume, 3, 1, 8, 2)
    monai("GlobalNet", (1, 2, 32, 32), (32, 32), 2, 2, 8, 2)
    monai("VoxelMorphUNet", (1, 2, 32, 32, 32), 3, 2, 3, [8, 8, 16, 16], [16, 16, 8, 8, 8])
    monai("Quicknat", (1, 1, 64, 64), 3, 1, 8)
    monai("FlexibleUNet", picture, 3, 2, "resnet18", pretrained=False)
    monai("MILModel", (1, 4, 3, 64, 64), 3, "att_trans", pretrained=False, backbone="resnet18")
    monai("EfficientNetBN", picture, "efficientnet-b0", pretrained=False)
    monai("SEResNet50", picture, spatial_dims=2, in_channels=3, num_classes=3)
    monai("resnet18", volume, spatial_dims=3, n_input_channels=1, num_classes=3)
    monai("SwinUNETR", (1, 1, 64, 64), 1, 2, feature_size=12, spatial_dims=2, use_v2=True)
    monai("UNETR", volume, 1, 2, (32, 32, 32), 8, 48, 96, 4)
    monai("SPADENet", [(1, 3, 32, 32), flat], 2, 1, 1, 3, (32, 32), channels=[8, 16], z_dim=8, is_vae=True)
    down = ((2, 4, 1, 1),) * 2
    monai(
        *("VQVAE", flat, 2, 1, 1, (16, 16)),
        **{"num_res_channels": (16, 16), "num_embeddings": 16, "embedding_dim": 8},
        **{"downsample_parameters": down, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2},
    )
    monai(
        *("AutoencoderKL", flat, 2, 1, 1, (1, 1, 1), (8, 16, 16), (False, False, True)),
        **{"latent_channels": 4, "norm_num_groups": 4},
    )
    diffusion: dict[str, Any] = {"num_res_blocks": (1, 1), "channels": (8, 16), "attention_levels": (False, True)}
    diffusion |= {"num_head_channels": 8, "norm_num_groups": 8}
    monai(
        *("DiffusionModelUNet", named(x=flat, timesteps=[3], context=(1, 3, 6)), 2, 1, 1),
        **{"with_conditioning": True, "cross_attention_dim": 6, **diffusion},
    )
    monai(
        *("ControlNet", named(x=flat, timesteps=[3], controlnet_cond=(1, 1, 64, 64)), 2, 1),
        **{"conditioning_embedding_in_channels": 1, "conditioning_embedding_num_channels": (8, 8), **diffusion},
    )


def _kornia() -> None:
    patch, grey, picture = (2, 1, 32, 32), (1, 1, 64, 64), (1, 3, 64, 64)
    kornia = partial(add, "kornia", "feature")
    for name in ("HardNet", "HardNet8", "HyNet", "TFeat", "SOSNet", "OriNet"):
        kornia(name, patch, pretrained=False)
    kornia("LAFAffNetShapeEstimator", patch, pretrained=False, part="features")
    kornia("KeyNet", (1, 1, 48, 48), pretrained=False)
    kornia("DISK", picture)
    kornia("DISK", picture, part="unet")
    kornia("XFeat", picture, part="net")
    kornia("ALIKED", picture)
    kornia("LoFTR", lambda: {"data": dict(zip(("image0", "image1"), shaped(grey, grey), strict=True))}, pretrained=None)
    kornia("LoFTR", grey, pretrained=None, part="backbone")
    kornia("SOLD2_detector", grey, pretrained=False)
    kornia("SOLD2_detector", grey, pretrained=False, part="model")
    add("kornia", "models.dexined", "DexiNed", picture, pretrained=False)
    add("kornia", "models.vit", "VisionTransformer", picture, image_size=64, embed_dim=96, depth=3, num_heads=3)
    add("kornia", "models.vit_mobile", "MobileViT", (1, 3, 256, 256), mode="xxs")
    add("kornia", "models.tiny_vit", "TinyViT", picture, img_size=64)
    add("kornia", "models.efficient_vit.backbone", "efficientvit_backbone_b0", picture)


def _efficientnet_pytorch() -> None:
    for number in range(2):
        name = f"efficientnet-b{number}"
        add("efficientnet_pytorch", "", "EfficientNet.from_name", (1, 3, 64, 64), name, label=name)


def _ultralytics() -> None:
    kinds = {"rtdetr": "RTDETRDetectionModel", "world": "WorldModel", "yoloe": "YOLOEModel"}
    kinds |= {"-seg": "SegmentationModel", "-pose": "PoseModel", "-cls": "ClassificationModel", "-obb": "OBBModel"}
    names = """
        yolov5n yolov8n yolo11n yolo12n yolo26n yolov6n yolov8n-ghost yolov8n-p2 yolov3-tiny yolov8n-cls
        yolov8n-seg yolo11n-pose yolo11n-obb yolo26n-seg yoloe-11n yolov8n-world yolov8n-worldv2 yolov8n-rtdetr
        yolov9t yolov10n
    """
    for name in names.split():
        kind = next((kinds[part] for part in kinds if part in name), "DetectionModel")
        add("ultralytics", "nn.tasks", kind, (1, 3, 64, 64), f"{name}.yaml", verbose=False, label=name)


def _segmentation_models_pytorch() -> None:
    encoders = """
        mobilenet_v2 timm-mobilenetv3_small_075 tu-mambaout_femto tu-convnext_atto tu-hrnet_w18_small
        efficientnet-b0 mit_b0 resnext50_32x4d timm-res2net50_26w_4s densenet121 vgg11_bn timm-skresnet18
        timm-regnetx_002 mobileone_s0
    """
    architectures = "Unet FPN PSPNet DeepLabV3Plus Linknet MAnet UPerNet Segformer PAN UnetPlusPlus DeepLabV3"
    smp = partial(add, "segmentation_models_pytorch", "", encoder_weights=None)
    for name in architectures.split():
        shape = (1, 3, 128, 128) if name == "PAN" else (1, 3, 64, 64)
        smp(name, shape, encoder_name="resnet18", label=" resnet18")
    for encoder in encoders.split():
        smp("Unet", (1, 3, 64, 64), encoder_name=encoder, label=f" {encoder}")
    smp("Unet", (1, 3, 64, 64), encoder_name="resnet18", decoder_attention_type="scse", label=" scse")


def _pytorchcv() -> None:
    names = """
        resnet20_cifar10 preresnet20_cifar10 seresnet20_cifar10 nin_cifar10 diaresnet20_cifar10
        resdropresnet20_cifar10 shakeshakeresnet20_2x16d_cifar10 ror3_56_cifar10 xdensenet40_2_k24_bc_cifar10
        resnext20_16x4d_cifar10 densenet40_k12_cifar10 fractalnet_cifar10 msdnet22_cifar10 regnetx002
        mobilenet_w1 mobilenetv2_w1 squeezenet_v1_0 mobilenetv3_small_w7d20 shufflenet_g1_w1 shufflenetv2_wd2
        menet108_8x1_g3 fdmobilenet_w1 espnetv2_wd2 dicenet_wd5 ghostnet mnasnet_b1 proxylessnas_cpu channelnet
        peleenet darknet_ref hardnet39ds resnet10 bam_resnet18 cbam_resnet18 octresnet10_ad2 resneta10
        lwopenpose2d_mobilenet_cmupan_coco centernet_resnet18_voc simplepose_resnet18_coco sqnxt23_w1 igcv3_w1
        fbnet_cb mixnet_s efficientnet_b0 condensenet74_c4_g4 diracnet18v2 sharesnet18 vovnet27s dla34
        hrnet_w18_small_v1 selecsls42 sparsenet121 alexnet zfnet scnet50 nasnet_4a1056 wrn20_10_1bit_cifar10
    """
    cities = "sinet fastscnn espcnet ctxnet fpenet enet edanet dabnet cgnet lednet erfnet esnet linknet"
    get = partial(add, "pytorchcv", "model_provider", "get_model", pretrained=False)
    for name in names.split():
        size = 32 if "cifar" in name else 224
        get((1, 3, size, size), name, label=name)
    for name in cities.split():
        city = f"{name}_cityscapes"
        get((1, 3, 128, 256), city, in_size=(128, 256), label=city)
    get(lambda: (torch.randn(1, 1, 16, 29), torch.tensor([1])), "voca8flame", label="voca8flame")
    get((1, 1, 64, 64), "superpointnet", label="superpointnet")


for _fill in (
    *(_diffusers, _torchaudio, _open_clip, _monai, _kornia, _efficientnet_pytorch),
    *(_ultralytics, _segmentation_models_pytorch, _pytorchcv),
):
    _fill()

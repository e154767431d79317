"""Models of eight libraries for vision that `libraries.py` tries: classes, segments, faces, texts, diffusion."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from library_models import MODELS, add, named
from torch import nn

__all__: list[str] = []

PICTURE = (1, 3, 64, 64)


def _pretrainedmodels() -> None:
    names = "bninception dpn68 dpn68b se_resnet50 se_resnext50_32x4d resnet18 densenet121 squeezenet1_1 nasnetamobile"
    for name in names.split():
        add("pretrainedmodels", "", name, (1, 3, 224, 224), num_classes=10, pretrained=None)
    for name in ("xception", "inceptionv4", "inceptionresnetv2"):
        add("pretrainedmodels", "", name, (1, 3, 299, 299), num_classes=10, pretrained=None)
    add("pretrainedmodels", "models.fbresnet", "fbresnet18", (1, 3, 224, 224), num_classes=10)


def _torchseg() -> None:
    encoders = (
        "mobilenetv2_050 efficientnet_lite0 convnext_atto mit_b0 resnest14d hrnet_w18_small ghostnet_050 repvgg_a0"
    )
    seg = partial(add, "torchseg", "", encoder_weights=None)
    for name in ["Unet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PAN", "UnetPlusPlus"]:
        shape = (1, 3, 128, 128) if name == "PAN" else PICTURE
        seg(name, shape, encoder_name="resnet18", label=" resnet18")
    for encoder in encoders.split():
        depth = 4 if encoder in ("convnext_atto", "mit_b0") else 5
        seg(
            "Unet",
            PICTURE,
            encoder_name=encoder,
            encoder_depth=depth,
            decoder_channels=(64, 32, 32, 16, 16)[:depth],
            label=f" {encoder}",
        )


def _segment_anything() -> None:
    sam = partial(add, "segment_anything", "modeling.image_encoder", "ImageEncoderViT", PICTURE)
    encoder = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "out_chans": 16}
    sam(**encoder, use_rel_pos=True, window_size=3, global_attn_indexes=(1,))
    sam(**encoder, use_abs_pos=False, label="ImageEncoderViT-plain")
    two_ways = (2, 32, 4, 64)
    add(
        *("segment_anything", "modeling.transformer", "TwoWayTransformer"),
        *([(1, 32, 8, 8), (1, 32, 8, 8), (1, 5, 32)], *two_ways),
    )

    def decoder() -> tuple[Any, Any]:
        modeling = importlib.import_module("segment_anything.modeling")
        transformer = importlib.import_module("segment_anything.modeling.transformer").TwoWayTransformer(*two_ways)
        inputs = named(
            **{f"{name}_embeddings": (1, 32, 8, 8) for name in ("image", "dense_prompt")},
            **{"image_pe": (1, 32, 8, 8), "sparse_prompt_embeddings": (1, 3, 32), "multimask_output": True},
        )
        return modeling.MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=16), inputs()

    MODELS["segment_anything:MaskDecoder"] = decoder


def _faces() -> None:
    for name, size in (("PNet", 24), ("RNet", 24), ("ONet", 48)):
        add("facenet_pytorch", "models.mtcnn", name, (2, 3, size, size), pretrained=False)
    faces = partial(add, "facenet_pytorch", "", "InceptionResnetV1", (2, 3, 160, 160))
    faces(pretrained=None)
    faces(pretrained=None, classify=True, num_classes=10, label=" classify")


def _resnest() -> None:
    def nest(label: str, **options: Any) -> None:
        def make() -> tuple[Any, Any]:
            package = importlib.import_module("resnest.torch.resnet")
            sizes = {
                "radix": 2,
                "groups": 1,
                "bottleneck_width": 16,
                "num_classes": 10,
                "deep_stem": True,
                "stem_width": 8,
            }
            sizes |= {"avg_down": True, "avd": True, **options}
            return package.ResNet(package.Bottleneck, [1, 1, 1, 1], **sizes), torch.randn(PICTURE)

        MODELS[f"resnest:{label}"] = make

    nest("ResNeSt")
    nest("ResNeSt-groups", groups=2, avd_first=True)
    nest("ResNeSt-radix4", radix=4)
    nest("ResNeSt-radix1", radix=1)
    nest("ResNeSt-dilated", dilated=True, final_drop=0.2)
    add("resnest", "torch", "resnest50", PICTURE)


def _denoising_diffusion() -> None:
    steps = [3, 7]
    flat, line = named(x=(2, 3, 32, 32), time=steps), named(x=(2, 3, 32), time=steps)
    net = partial(add, "denoising_diffusion_pytorch")
    unet = partial(net, "denoising_diffusion_pytorch", "Unet", flat, dim=16, attn_dim_head=8)
    unet(dim_mults=(1, 2))
    unet(dim_mults=(1, 2, 4), full_attn=(False, False, True), learned_variance=True, flash_attn=True, label=" flash")
    unet(dim_mults=(1, 2), random_fourier_features=True, self_condition=True, dropout=0.1, label=" self-condition")
    net("denoising_diffusion_pytorch_1d", "Unet1D", line, dim=16, dim_mults=(1, 2), attn_dim_head=8)
    karras = {
        "image_size": 32,
        "dim": 16,
        "dim_max": 32,
        "channels": 3,
        "num_downsamples": 2,
        "num_blocks_per_stage": 1,
    }
    karras |= {"attn_dim_head": 8, "attn_res": (8,)}
    net("karras_unet", "KarrasUnet", flat, **karras)
    net("simple_diffusion", "UViT", flat, 16, dim_mults=(1, 2), vit_depth=1, attn_dim_head=8)
    classes = named(x=(2, 3, 32, 32), time=steps, classes=[1, 2], cond_drop_prob=0.0)
    net("classifier_free_guidance", "Unet", classes, 16, 5, dim_mults=(1, 2), attn_dim_head=8, label="Unet-classes")


def _doctr() -> None:
    def net(task: str, names: str, shape: tuple[int, ...], **options: Any) -> None:
        for name in names.split():
            add("doctr", f"models.{task}", name, shape, pretrained=False, **options)

    page, word = (1, 3, 128, 128), (1, 3, 32, 128)
    # Without the boxes and the words, whose number depends on values.
    bare = {"pretrained_backbone": False, "exportable": True}
    net("detection", "db_resnet34 db_mobilenet_v3_large linknet_resnet18 fast_tiny", page, **bare)
    readers = "crnn_vgg16_bn crnn_mobilenet_v3_small crnn_mobilenet_v3_large viptr_tiny"
    net("recognition", f"{readers} vitstr_small parseq", word, **bare)
    net("classification", "vgg16_bn_r mobilenet_v3_small_r magc_resnet31 textnet_tiny vit_s vip_tiny", (1, 3, 32, 32))
    net("classification", "mobilenet_v3_small_page_orientation starnet_s3", page)


def _nnunet() -> None:
    sizes = {"kernel_sizes": 3, "strides": [1, 2, 2], "n_stages": 3, "features_per_stage": [8, 16, 32]}
    sizes |= {"n_conv_per_stage_decoder": 1, "num_classes": 3, "conv_bias": True, "input_channels": 1}
    sizes |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    nets = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
    nets["ResidualUNet"] = "n_blocks_per_stage"
    unet = partial(add, "dynamic_network_architectures", "architectures.unet")
    for name, depth in nets.items():
        flat, deep = ({**sizes, depth: 1, "conv_op": kind} for kind in (nn.Conv2d, nn.Conv3d))
        norms = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}}
        unet(name, (1, 1, 32, 32), **flat, norm_op=nn.BatchNorm2d, label=f"{name}-2d")
        unet(name, (1, 1, 16, 16, 16), **deep, **norms, deep_supervision=True, label=f"{name}-3d")
    resnet = partial(add, "dynamic_network_architectures", "architectures.resnet")
    resnet("ResNet18_CIFAR", (1, 3, 32, 32), 10)
    resnet("ResNet18", (1, 1, 32, 32, 32), 3, 1, 3, squeeze_excitation=True, stochastic_depth_p=0.1, label=" 3d")
    add("dynamic_network_architectures", "architectures.vgg", "VGG16_cifar", (1, 3, 32, 32), 10)


_pretrainedmodels()
_torchseg()
_segment_anything()
_faces()
_resnest()
_denoising_diffusion()
_doctr()
_nnunet()

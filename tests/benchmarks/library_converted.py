"""The models of onnx2torch, rtdetr and mambapy that `libraries.py` tries; those of onnx2torch come from ONNX files."""

from __future__ import annotations

import importlib
import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from library_models import MODELS, add
from torch import nn

__all__: list[str] = []

TORCHVISION = """
    resnet18 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5 squeezenet1_1 mnasnet0_5 efficientnet_b0 regnet_y_400mf
    densenet121
"""
TIMM = """
    convnext_atto ghostnet_050 mobilevit_xxs poolformerv2_s12 repvgg_a0 res2net50_26w_4s vit_tiny_patch16_224
    mixer_s32_224 levit_128s lcnet_050 hrnet_w18_small resnest14d pvt_v2_b0 cspresnet50
"""


def _original(library: str, name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if library == "torchvision":
        return importlib.import_module("torchvision.models").get_model(name, weights=None), (2, 3, 64, 64)
    sizes = {"img_size": 64} if name.startswith(("vit", "mixer")) else {}
    return importlib.import_module("timm").create_model(name, **sizes), (2, 3, *([224 if "levit" in name else 64] * 2))


def _converted(library: str, name: str) -> tuple[nn.Module, Any]:
    """The model written to ONNX, with any batch, and read by onnx2torch."""
    model, shape = _original(library, name)
    # onnx2torch does not read tensors that are stored once because they are equal, as biases of zeros are.
    for values in (*model.parameters(), *(x for x in model.buffers() if x.is_floating_point())):
        values.data.add_(torch.rand_like(values) * 0.02)
    inputs, file = torch.randn(shape), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch"}}
        torch.onnx.export(
            model.eval(), (inputs,), file, dynamo=False, opset_version=14, input_names=["x"], dynamic_axes=axes
        )
    file.seek(0)
    graph = importlib.import_module("onnx").load(file)
    return importlib.import_module("onnx2torch").convert(graph), inputs


def _nudenet() -> tuple[nn.Module, Any]:
    """The detector in the package nudenet, a YOLOv8n of 320 x 320."""
    file = Path(str(importlib.import_module("nudenet").__file__)).parent / "320n.onnx"
    return importlib.import_module("onnx2torch").convert(str(file)), torch.rand(1, 3, 320, 320)


def _onnx2torch() -> None:
    for library, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in names.split():
            MODELS[f"onnx2torch:{library}-{name}"] = partial(_converted, library, name)
    MODELS["onnx2torch:nudenet-320n"] = _nudenet


def _rtdetr() -> None:
    picture = (1, 3, 128, 128)
    add("rtdetr", "nn.presnet", "PResNet", picture, 18)
    add("rtdetr", "nn.presnet", "PResNet", picture, 50, label="PResNet-50")
    features = [(1, 16, 16, 16), (1, 24, 8, 8), (1, 32, 4, 4)]
    sizes = {"hidden_dim": 32, "nhead": 4, "dim_feedforward": 64}
    net = ("rtdetr", "nn.hybrid_encoder", "HybridEncoder", lambda: ([*map(torch.randn, features)],))
    add(*net, in_channels=(16, 24, 32), **sizes)
    add(*net, in_channels=(16, 24, 32), **sizes, expansion=0.5, use_encoder_idx=(1, 2), label=" half")
    decoder = {**sizes, "num_queries": 10, "num_decoder_layers": 2, "feat_channels": (16, 24, 32), "num_classes": 5}
    add("rtdetr", "nn.decoder", "RTDETRTransformer", net[3], **decoder)
    add("rtdetr", "nn.rtdetr_net", "RTDETRNet", picture, "r18", 5, 10, 32, pretrained_backbone=False)


def _mambapy() -> None:
    def net(file: str, kind: str, config: str, shape: tuple[int, ...], label: str = "", **sizes: Any) -> None:
        def make() -> tuple[Any, Any]:
            module, configs = (importlib.import_module(f"mambapy.{name}") for name in (file, config))
            kinds = {"mamba": "MambaConfig", "vim": "MambaConfig", "mamba2": "Mamba2Config", "jamba": "JambaLMConfig"}
            inputs = torch.randn(shape) if len(shape) == 3 else torch.randint(0, 20, shape)
            return getattr(module, kind)(getattr(configs, kinds[config])(**sizes)), inputs

        MODELS[f"mambapy:{label or kind}"] = make

    small = {"d_model": 16, "n_layers": 2, "d_state": 4}
    net("mamba", "Mamba", "mamba", (2, 8, 16), **small)
    net("mamba", "Mamba", "mamba", (2, 8, 16), **small, pscan=False, label="Mamba-sequential")
    net("mamba", "Mamba", "mamba", (2, 8, 16), **small, inner_layernorms=True, bias=True, label="Mamba-norms")
    net("vim", "VMamba", "vim", (2, 8, 16), **small, bidirectional=True)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}
    places = {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2}
    net("jamba", "JambaLM", "jamba", (2, 8), **small, mlp_size=32, vocab_size=20, **heads, **places)


_onnx2torch()
_rtdetr()
_mambapy()

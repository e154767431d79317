"""The models of vit_pytorch and x_transformers that `libraries.py` tries."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from library_models import MODELS, add
from torch import Tensor

__all__: list[str] = []

IMAGE = {"image_size": 32, "patch_size": 8, "num_classes": 10}
SIZES = {"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64, "dim_head": 8}
VIT = {**IMAGE, **SIZES}
VIDEO = {"image_size": 32, "image_patch_size": 8, "frames": 4, "frame_patch_size": 2, "num_classes": 10}
# Module, class: each takes images of 32 x 32 and the arguments of `VIT`.
PLAIN = """
    vit ViT | deepvit DeepViT | learnable_memory_vit ViT | mp3 ViT | vit_5 ViT
    parallel_vit ViT | rvt RvT | simple_uvit SimpleUViT | simple_vit SimpleViT | jet_vit JetViT
    simple_flash_attn_vit SimpleViT | simple_vit_with_patch_dropout SimpleViT | simple_vit_with_qk_norm SimpleViT
    simple_vit_attn_residual SimpleViTAttnResidual | simple_vit_orthog_residual_update SimpleViT
    simple_vit_with_register_tokens SimpleViT | simple_vit_with_relative_proj_pos_bias SimpleViT
    simple_vit_with_sparse_gating SimpleViTWithSparseGating | simple_vit_with_specialized_cls SimpleViT
    simple_vit_with_value_residual SimpleViT | vit_detpool ViTDetPool | vit_for_small_dataset ViT
    vit_with_decorr ViT | vit_with_keel_post_ln ViT | vit_with_patch_dropout ViT | vit_with_patch_merger ViT
    normalized_vit nViT | attn_residual_with_dca_simple_vit SimpleViT
"""


def _vit_pytorch() -> None:
    image = (2, 3, 32, 32)

    def vit(module: str, kind: str, shape: tuple[int, ...] = image, label: str = "", **kwargs: Any) -> None:
        add("vit_pytorch", module, kind, shape, label=label or module, **kwargs)

    for row in PLAIN.replace("\n", "|").split("|"):
        if row.strip():
            vit(*row.split(), **VIT)
    vit("vit", "ViT", label="vit-mean", **VIT, pool="mean", channels=3, dropout=0.1)
    vit("ats_vit", "ViT", **VIT, max_tokens_per_depth=(12, 8))
    vit("cait", "CaiT", **VIT, cls_depth=1, layer_dropout=0.05)
    vit("xcit", "XCiT", **VIT, cls_depth=1)
    tokens = {"img_size": 32, "embedding_dim": 32, "num_layers": 2, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 10}
    vit("cct", "CCT", **tokens, n_conv_layers=2, kernel_size=3, stride=1, padding=1)
    vit("cct", "CCT", label="cct-learned", **tokens, positional_embedding="learnable")
    vit("cct_3d", "CCT", (2, 3, 4, 32, 32), **tokens, num_frames=4, frame_kernel_size=2, n_conv_layers=1)
    heads = {f"{name}_{key}": n for name in ("sm_enc", "lg_enc") for key, n in (("heads", 4), ("dim_head", 8))}
    vit(
        *("cross_vit", "CrossViT"),
        **{"image_size": 32, "num_classes": 10, "sm_dim": 16, "lg_dim": 32, "sm_patch_size": 8, "depth": 1, **heads},
        **{"sm_enc_mlp_dim": 32, "lg_enc_mlp_dim": 64, "lg_enc_depth": 1, "cross_attn_heads": 4, "cross_attn_depth": 1},
        cross_attn_dim_head=8,
    )
    four = {"dim": (16, 32, 32, 64), "depth": (1, 1, 1, 1), "num_classes": 10}
    wide = {**four, "dim": (32, 32, 64, 64)}
    vit("crossformer", "CrossFormer", (2, 3, 64, 64), **wide, local_window_size=2, global_window_size=(4, 2, 2, 1))
    vit("regionvit", "RegionViT", (2, 3, 64, 64), **four, window_size=2, use_peg=True, tokenize_local_3_conv=True)
    stages = {f"s{i}_emb_dim": 16 * i for i in (1, 2, 3)}
    vit("cvt", "CvT", (2, 3, 64, 64), num_classes=10, **stages, s2_depth=1, s3_depth=1)
    stages |= {"s4_emb_dim": 64, "s3_depth": 1, "s4_depth": 1}
    windows = {f"s{i}_{key}": 2 for i in (1, 2, 3, 4) for key in ("local_patch_size", "global_k")}
    vit("twins_svt", "TwinsSVT", (2, 3, 64, 64), num_classes=10, **stages, **windows | {"s4_local_patch_size": 1})
    vit("jumbo_vit", "JumboViT", **VIT, jumbo_cls_k=2)
    vit("pit", "PiT", (2, 3, 48, 48), **VIT | {"image_size": 48, "depth": (1, 1)})
    no_depth = {k: v for k, v in VIT.items() if k != "depth"}
    vit("looped_vit", "LoopedViT", **no_depth, pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1, loop_depth=2)
    vit(
        *("levit", "LeViT", (2, 3, 64, 64)),
        **{"image_size": 64, "num_classes": 10, "dim": (32, 48, 64), "depth": 1, "heads": (2, 3, 4), "mlp_mult": 2},
        **{"dim_key": 8, "dim_value": 16, "num_distill_classes": 5},
    )
    look = {**SIZES, "image_size": 32, "num_classes": 10, "patch_size": 16, "highres_patch_size": 8}
    del look["mlp_dim"]
    vit("look_vit", "LookViT", **look, cross_attn_heads=4, cross_attn_dim_head=8)
    maxed = {"num_classes": 10, "dim": 16, "depth": (1, 1), "dim_head": 8, "window_size": 4}
    vit("max_vit", "MaxViT", **maxed, dim_conv_stem=16)
    vit("max_vit_with_registers", "MaxViT", **maxed, dim_conv_stem=16)
    vit(
        *("mobile_vit", "MobileViT", (2, 3, 64, 64)),
        **{"image_size": (64, 64), "dims": [32, 40, 48], "num_classes": 10, "depths": (1, 1, 1)},
        channels=[8, 8, 16, 16, 24, 24, 32, 32, 40, 40, 48],
    )
    vit("nest", "NesT", **IMAGE, dim=16, heads=2, num_hierarchies=2, block_repeats=(1, 1), dim_head=8)
    scaled = {"num_classes": 10, "dim": 16, "heads": (2, 2), "depth": (1, 1), "window_size": (4, None)}
    halves = {f"{name}_dim_{key}": 8 for name in ("ssa", "iwsa") for key in ("key", "value")}
    vit("scalable_vit", "ScalableViT", **scaled, reduction_factor=(2, 1), **halves)
    vit("sep_vit", "SepViT", (2, 3, 56, 56), num_classes=10, dim=16, depth=(1, 1), heads=(2, 4), dim_head=8)
    vit("simple_vit_1d", "SimpleViT", (2, 3, 64), seq_len=64, patch_size=8, num_classes=10, **SIZES)
    vit("vit_1d", "ViT", (2, 3, 64), seq_len=64, patch_size=8, num_classes=10, **SIZES)
    vit("simple_vit_with_fft", "SimpleViT", **VIT, freq_patch_size=8)
    vit("simple_vit_with_hyper_connections", "SimpleViT", **VIT, num_residual_streams=2)
    film = (2, 3, 4, 32, 32)
    for module, kind in (("vit_3d", "ViT"), ("simple_vit_3d", "SimpleViT"), ("simple_flash_attn_vit_3d", "SimpleViT")):
        vit(module, kind, film, **VIDEO, **SIZES)
    depths = {**{k: v for k, v in SIZES.items() if k != "depth"}, "spatial_depth": 1, "temporal_depth": 1}
    for variant in ("factorized_encoder", "factorized_self_attention"):
        vit("vivit", "ViViT", film, label=f"vivit-{variant}", variant=variant, **VIDEO, **depths)
    vit("vivit_with_moss", "ViViT", film, **VIDEO, **depths)
    small = {k: v for k, v in VIT.items() if k != "patch_size"}
    vit("t2t", "T2TViT", **small, t2t_layers=((7, 4), (3, 2)))
    for module in ("vit_nd", "vit_nd_rotary", "vit_nd_pope"):
        cube = {"input_shape": (4, 16, 16), "patch_size": (2, 4, 4), "num_classes": 10, "channels": 3}
        vit(module, "ViTND", (2, 3, 4, 16, 16), ndim=3, **cube, **SIZES)
    vit("wwt", "WWT", **IMAGE, dim=32, depth=2, num_slots=4, heads=4, dim_head=8)


def _x_transformers() -> None:
    def layers(kind: str, **flags: Any) -> Any:
        sizes = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8, "verbose": False}
        return getattr(importlib.import_module("x_transformers"), kind)(**{**sizes, **flags})

    def model(label: str, wrapper: str, kind: str, inputs: Any, outer: dict[str, Any], **flags: Any) -> None:
        def make() -> tuple[Any, Any]:
            package = importlib.import_module("x_transformers")
            return getattr(package, wrapper)(**outer, attn_layers=layers(kind, **flags)), inputs()

        assert f"x_transformers:{label}" not in MODELS, f"there are two models {label}"
        MODELS[f"x_transformers:{label}"] = make

    def ids() -> Tensor:
        return torch.randint(0, 40, (2, 12))

    tokens = {"num_tokens": 40, "max_seq_len": 32}
    decoder = partial(model, wrapper="TransformerWrapper", kind="Decoder", inputs=ids, outer=tokens)
    encoder = partial(model, wrapper="TransformerWrapper", kind="Encoder", inputs=ids, outer=tokens)
    on = dict.fromkeys
    decoder("decoder")
    decoder("decoder-rotary", **on(["rotary_pos_emb", "attn_flash", "attn_qk_norm"], True))
    decoder("decoder-rms-swiglu", **on(["use_rmsnorm", "ff_glu", "ff_swish", "ff_no_bias"], True))
    decoder("decoder-alibi", alibi_pos_bias=True, alibi_num_heads=2, ff_relu_squared=True)
    decoder("decoder-multi-query", attn_one_kv_head=True, attn_num_mem_kv=2)
    decoder("decoder-grouped-query", attn_kv_heads=2, attn_head_scale=True)
    decoder("decoder-talking", attn_pre_talking_heads=True, attn_post_talking_heads=True)
    decoder("decoder-gated", attn_gate_values=True, attn_gate_value_heads=True, gate_residual=True)
    decoder("decoder-macaron", macaron=True, sandwich_norm=True)
    decoder("decoder-value-residual", add_value_residual=True, shift_tokens=1)
    decoder("decoder-hyper", num_residual_streams=2)
    decoder("decoder-reinject", reinject_input=True, learned_reinject_input_gate=True, softclamp_output=True)
    decoder(
        "decoder-latent", attn_use_latent_q=True, attn_dim_latent_q=16, attn_use_latent_kv=True, attn_dim_latent_kv=16
    )
    decoder("decoder-cope", attn_use_cope=True)
    decoder("decoder-xpos", rotary_xpos=True, use_scalenorm=True)
    decoder("decoder-tied", outer={**tokens, "tie_embedding": True, "num_memory_tokens": 3}, weight_tie_layers=True)
    decoder("decoder-mixture", outer={**tokens, "mixture_of_softmax": True, "emb_dim": 24, "l2norm_embed": True})
    decoder("decoder-deep-embed", outer={**tokens, "ff_deep_embed": True, "post_emb_norm": True})
    encoder("encoder")
    encoder("encoder-relative", rel_pos_bias=True, pre_norm=False)
    encoder("encoder-dynamic", dynamic_pos_bias=True, scale_residual=True, use_simple_rmsnorm=True)
    encoder("encoder-tanh", use_dynamic_tanh=True, use_layerscale=True, layerscale_init_value=0.5)
    encoder("encoder-cls", outer={**tokens, "use_cls_token": True, "logits_dim": 5}, residual_attn=True)
    encoder("encoder-pooled", outer={**tokens, "average_pool_embed": True, "num_output_heads": 2}, unet_skips=True)
    encoder("encoder-attn-pool", outer={**tokens, "attn_pool": True}, attn_l2_distance=True)
    encoder("encoder-sparse", attn_sparse_topk=4, attn_softclamp_logits=True, attn_value_dim_head=16)
    encoder("encoder-lime", integrate_layers=True, pre_and_post_norm=True)
    encoder("encoder-sandwich", sandwich_coef=1, attn_laser=True, attn_head_learned_sink=True)
    images = {"image_size": 32, "patch_size": 8, "num_classes": 10}
    vision = partial(
        model, wrapper="ViTransformerWrapper", kind="Encoder", inputs=lambda: torch.randn(2, 3, 32, 32), outer=images
    )
    vision("vision")
    vision("vision-registers", outer={**images, "num_register_tokens": 2, "post_emb_norm": True}, ff_glu=True)
    vision("vision-gated", attn_output_gate=True, attn_add_zero_kv=True, orthog_residual=True)
    vision("vision-unshared", num_residual_streams=2, attn_qk_rmsnorm=True, ff_solu=True, depth=3)
    continuous = {"dim_in": 6, "dim_out": 5, "max_seq_len": 32}
    states = partial(
        model, wrapper="ContinuousTransformerWrapper", inputs=lambda: torch.randn(2, 12, 6), outer=continuous
    )
    states("continuous", kind="Encoder")
    states("continuous-decoder", kind="Decoder", outer={**continuous, "num_memory_tokens": 2}, polar_pos_emb=True)
    halves = {f"{half}_{key}": n for half in ("enc", "dec") for key, n in (("depth", 1), ("heads", 4))}
    halves |= {f"{half}_{key}": n for half in ("enc", "dec") for key, n in (("num_tokens", 40), ("max_seq_len", 16))}
    add("x_transformers", "", "XTransformer", lambda: (ids(), ids()[:, :9]), dim=32, **halves, tie_token_emb=True)


_vit_pytorch()
_x_transformers()

"""Models of transformers for images, video and images with text that `libraries.py` tries, more than the first ones."""

from __future__ import annotations

from typing import Any

import torch
from library_transformers import (
    BOTH,
    DECODER,
    DETECTOR,
    ENCODER,
    LAYERS,
    RESNET,
    SWIN,
    VIT,
    captioned,
    floats,
    image,
    numbers,
    rows,
    video,
)

__all__: list[str] = []

FOUR = ["stage1", "stage2", "stage3", "stage4"]
THREE = {**RESNET, "out_features": FOUR[1:]}
ALL = {**RESNET, "out_features": FOUR}
VIT_BACKBONE = {
    "model_type": "dinov2",
    **VIT,
    "num_hidden_layers": 4,
    "out_features": FOUR,
    "reshape_hidden_states": False,
}
SWIN_BACKBONE = {"model_type": "swin", **SWIN, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "out_features": FOUR}
NECK = {"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16}

# Classes
rows(
    "EfficientNetForImageClassification",
    image,
    width_coefficient=0.25,
    depth_coefficient=0.3,
    image_size=64,
    hidden_dim=320,
)
rows("CvtForImageClassification", image, embed_dim=[16, 32, 64], num_heads=[1, 2, 4], depth=[1, 2, 3])
rows("PixioModel Dinov2Model Aimv2VisionModel", image, **VIT)
rows(
    "Siglip2VisionModel",
    lambda: {
        "pixel_values": torch.randn(2, 16, 768),
        "pixel_attention_mask": torch.ones(2, 16).long(),
        "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
    },
    **LAYERS,
    patch_size=16,
    num_patches=16,
)
rows(
    "MLCDVisionModel CLIPVisionModel ViTMAEForPreTraining",
    image,
    **VIT,
    decoder_hidden_size=32,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=64,
)
rows(
    "HGNetV2ForImageClassification",
    image,
    stem_channels=[3, 8, 8],
    stage_in_channels=[8, 16, 32, 32],
    stage_mid_channels=[8, 8, 8, 8],
    stage_out_channels=[16, 32, 32, 32],
    stage_num_blocks=[1, 1, 1, 1],
    stage_downsample=[False, True, True, True],
    stage_light_block=[False, False, True, True],
    stage_kernel_size=[3, 3, 5, 5],
    stage_numb_of_layers=[2, 2, 2, 2],
    embedding_size=8,
    hidden_sizes=[16, 32, 32, 32],
    depths=[1, 1, 1, 1],
)
rows(
    "TextNetForImageClassification",
    image,
    stem_out_channels=8,
    hidden_sizes=[8, 8, 16, 16, 32],
    conv_layer_kernel_sizes=[[[3, 3]], [[3, 3], [3, 1]], [[1, 3]], [[3, 3]]],
    conv_layer_strides=[[1], [2, 1], [2], [2]],
)
rows(
    "VJEPA2ForVideoClassification",
    lambda: {"pixel_values_videos": video()["pixel_values"]},
    **LAYERS,
    patch_size=16,
    crop_size=32,
    frames_per_clip=4,
    tubelet_size=2,
    num_pooler_layers=1,
    pred_hidden_size=32,
    pred_num_hidden_layers=1,
    pred_num_attention_heads=4,
)
rows("VideoMAEModel", video, **{**VIT, "image_size": 32}, num_frames=4)
LATENTS = {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 1}
rows(
    "PerceiverForImageClassificationConvProcessing",
    image,
    **LATENTS,
    d_model=322,
    num_self_attention_heads=4,
    num_cross_attention_heads=1,
)
rows(
    "PerceiverForSequenceClassification",
    lambda: {"inputs": numbers(16)},
    **LATENTS,
    d_model=32,
    vocab_size=99,
    max_position_embeddings=16,
    num_self_attention_heads=4,
    num_cross_attention_heads=4,
    qk_channels=32,
)

# Depth, segments, masks
rows(
    "DepthAnythingForDepthEstimation",
    image,
    backbone_config=VIT_BACKBONE,
    patch_size=8,
    reassemble_hidden_size=32,
    head_hidden_size=8,
    **NECK,
)
rows(
    "ZoeDepthForDepthEstimation",
    image,
    backbone_config={
        "model_type": "beit",
        **VIT,
        "num_hidden_layers": 4,
        "out_features": FOUR,
        "reshape_hidden_states": False,
    },
    **{**NECK, "fusion_hidden_size": 32},
    bottleneck_features=32,
    num_relative_features=8,
)
rows(
    "DPTForSemanticSegmentation",
    image,
    **{**VIT, "num_hidden_layers": 4},
    backbone_out_indices=[0, 1, 2, 3],
    **NECK,
    is_hybrid=False,
)
rows(
    "BeitForSemanticSegmentation",
    image,
    **{**VIT, "num_hidden_layers": 4},
    out_indices=[1, 2, 3, 4],
    use_relative_position_bias=True,
)
MASKS = {
    **LAYERS,
    "feature_size": 32,
    "mask_feature_size": 32,
    "num_queries": 6,
    "hidden_dim": 32,
    "num_attention_heads": 4,
    "dim_feedforward": 64,
    "encoder_feedforward_dim": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
rows("Mask2FormerForUniversalSegmentation", image, **MASKS, backbone_config=SWIN_BACKBONE)
rows(
    "MaskFormerForInstanceSegmentation",
    image,
    fpn_feature_size=32,
    mask_feature_size=32,
    backbone_config=SWIN_BACKBONE,
    decoder_config={"model_type": "detr", **BOTH, "num_queries": 6},
)
rows(
    "SegGptModel",
    lambda: {
        "pixel_values": torch.randn(2, 3, 64, 32),
        "prompt_pixel_values": torch.randn(2, 3, 64, 32),
        "prompt_masks": torch.randn(2, 3, 64, 32),
    },
    **{**VIT, "image_size": [128, 32]},
    mlp_dim=64,
    merge_index=0,
    intermediate_hidden_state_indices=[1],
    decoder_hidden_size=8,
    pretrain_image_size=32,
)
rows(
    "VitMatteForImageMatting",
    floats(pixel_values=(2, 4, 64, 64)),
    hidden_size=32,
    convstream_hidden_sizes=[8, 8, 16],
    fusion_hidden_sizes=[16, 16, 8, 8],
    backbone_config={"model_type": "vitdet", **VIT, "patch_size": 16, "num_channels": 4, "out_features": ["stage2"]},
)
rows(
    "VitPoseForPoseEstimation",
    image,
    backbone_config={
        "model_type": "vitpose_backbone",
        **VIT,
        "image_size": [64, 64],
        "patch_size": [16, 16],
        "out_features": ["stage2"],
    },
    num_labels=5,
)
rows("EomtForUniversalSegmentation", image, **VIT, num_blocks=1, num_queries=6, num_upscale_blocks=1)
rows("SamHQVisionModel", image, **VIT, output_channels=16, window_size=2, global_attn_indexes=[1], mlp_dim=64)
SAM = {
    "vision_config": {
        **VIT,
        "output_channels": 32,
        "window_size": 2,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
        "num_pos_feats": 16,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8, "mask_input_channels": 8},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 16},
}
rows("SamModel", lambda: image() | {"input_points": torch.rand(2, 1, 1, 2) * 64}, **SAM)

# Detectors
HYBRID = {
    **BOTH,
    **DETECTOR,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [32, 32, 64],
    "decoder_n_points": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_feature_levels": 3,
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
    "hidden_expansion": 0.5,
    "anchor_image_size": None,
    "decoder_ffn_dim": 64,
}
HYBRID["backbone_config"] = {**THREE, "model_type": "rt_detr_resnet", "downsample_in_bottleneck": False}
rows("RTDetrForObjectDetection RTDetrV2ForObjectDetection", image, **HYBRID)
rows("DFineForObjectDetection", image, **{**HYBRID, "decoder_n_points": [2, 2, 2]})
rows("DabDetrForObjectDetection", image, **BOTH, **DETECTOR, backbone_config={**RESNET, "out_features": ["stage4"]})
TEXT = {**ENCODER, "num_hidden_layers": 1, "eos_token_id": 2}
OWL = {"text_config": {**TEXT, "max_position_embeddings": 7}, "vision_config": VIT, "projection_dim": 32}
rows("OwlViTForObjectDetection Owlv2ForObjectDetection", captioned, **OWL)
rows(
    "GroundingDinoForObjectDetection",
    captioned,
    **{**BOTH, **DETECTOR, "backbone_config": THREE},
    text_config={"model_type": "bert", **ENCODER},
    max_text_len=7,
    encoder_n_points=2,
    decoder_n_points=2,
)

# Images with text
DUAL = {"text_config": TEXT, "vision_config": VIT, "projection_dim": 32}
rows("ChineseCLIPModel AltCLIPModel GroupViTModel", captioned, **DUAL)
rows("BlipForImageTextRetrieval", captioned, **{**DUAL, "image_text_hidden_size": 32})
rows("BlipForConditionalGeneration", captioned, **{**DUAL, "text_config": {**TEXT, "encoder_hidden_size": 32}})
rows(
    "CLIPSegForImageSegmentation",
    captioned,
    **DUAL,
    extract_layers=[0, 1],
    reduce_dim=16,
    decoder_num_attention_heads=4,
    decoder_intermediate_size=32,
)
rows(
    "XCLIPModel",
    lambda: video() | {"input_ids": numbers()},
    **{
        **DUAL,
        "vision_config": {
            **VIT,
            "image_size": 32,
            "num_frames": 4,
            "mit_hidden_size": 32,
            "mit_num_attention_heads": 4,
            "mit_intermediate_size": 64,
        },
    },
    prompt_num_attention_heads=4,
    prompt_layers=1,
)
rows("AlignVisionModel", image, width_coefficient=0.25, depth_coefficient=0.3, image_size=64, hidden_dim=64)
rows("GitForCausalLM", captioned, **ENCODER, vision_config=VIT, use_cache=False)
rows("FlavaImageModel", image, **VIT)
rows("FlavaTextModel", lambda: {"input_ids": numbers()}, **ENCODER)
rows(
    "LayoutLMv3ForTokenClassification",
    lambda: captioned() | {"bbox": torch.zeros(2, 7, 4).long()},
    **ENCODER,
    input_size=64,
    coordinate_size=4,
    shape_size=8,
    patch_size=16,
)
rows("Blip2VisionModel InstructBlipVisionModel", image, **VIT)
rows(
    "Kosmos2ForConditionalGeneration",
    lambda: captioned() | {"image_embeds_position_mask": torch.tensor([[0, 1, 1, 1, 1, 0, 0]] * 2)},
    text_config={
        "vocab_size": 99,
        "embed_dim": 32,
        "ffn_dim": 64,
        "layers": 2,
        "attention_heads": 4,
        "use_cache": False,
    },
    vision_config=VIT,
    latent_query_num=4,
)


def pictured(count: int) -> Any:
    """Text with the token of an image `count` times."""
    return lambda: image() | {"input_ids": torch.cat([numbers(3), torch.full((2, count), 95), numbers(4)], 1)}


LLAMA = {"model_type": "llama", **DECODER}
EYES = {"model_type": "clip_vision_model", **VIT}
rows(
    "LlavaForConditionalGeneration VipLlavaForConditionalGeneration",
    pictured(64),
    text_config=LLAMA,
    vision_config=EYES,
    image_token_id=95,
    image_token_index=95,
    image_seq_length=64,
    vision_feature_layer=-1,
    vision_feature_layers=[-1],
)
rows(
    "PaliGemmaForConditionalGeneration",
    pictured(64),
    text_config={"model_type": "gemma", **DECODER, "head_dim": 8},
    vision_config={"model_type": "siglip_vision_model", **VIT, "projection_dim": 32},
    image_token_index=95,
    image_token_id=95,
    projection_dim=32,
)
rows(
    "InternVLForConditionalGeneration",
    pictured(4),
    text_config={"model_type": "qwen2", **DECODER},
    vision_config={**VIT, "image_size": [64, 64], "patch_size": [16, 16]},
    image_token_id=95,
)
rows("Idefics3VisionTransformer SmolVLMVisionTransformer", image, **VIT)
rows(
    "Gemma3ForConditionalGeneration",
    pictured(4),
    text_config={**DECODER, "head_dim": 8},
    image_token_id=95,
    image_token_index=95,
    vision_config={"model_type": "siglip_vision_model", **VIT},
    mm_tokens_per_image=4,
)
SQUARE = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2}
rows(
    "Qwen2VLForConditionalGeneration",
    lambda: {"input_ids": numbers()},
    text_config={**DECODER, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    vision_config=SQUARE,
)

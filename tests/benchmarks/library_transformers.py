"""The models of transformers that `libraries.py` tries; each row is some class names and one configuration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from library_models import MODELS
from torch import Tensor

__all__: list[str] = []

Inputs = Callable[[], dict[str, Any]]


def rows(names: str, inputs: Inputs, /, **config: Any) -> None:
    """Add the named classes, each with its own kind of configuration."""
    for name in names.split():

        def make(name: str = name) -> tuple[Any, Any]:
            kind = getattr(importlib.import_module("transformers"), name)
            return kind(kind.config_class(**config)), inputs()

        assert f"transformers:{name}" not in MODELS, f"there are two models {name}"
        MODELS[f"transformers:{name}"] = make


def numbers(length: int = 7) -> Tensor:
    return torch.randint(3, 90, (2, length))


def ids() -> dict[str, Any]:
    return {"input_ids": numbers()}


def padded() -> dict[str, Any]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": numbers(), "attention_mask": mask}


def translation() -> dict[str, Any]:
    return {**padded(), "decoder_input_ids": numbers(5)}


def image(size: int = 64) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def captioned() -> dict[str, Any]:
    return {"input_ids": numbers(), **image()}


def video() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 4, 3, 32, 32)}


def sound() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 1600)}


def floats(**shapes: tuple[int, ...]) -> Inputs:
    return lambda: {name: torch.randn(shape) for name, shape in shapes.items()}


LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**LAYERS, "vocab_size": 99, "max_position_embeddings": 32}
DECODER = {**ENCODER, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
VIT = {**LAYERS, "image_size": 64, "patch_size": 8}
STAGES = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
PYRAMID = {**STAGES, "num_attention_heads": [1, 2, 2, 4]}
WINDOWS = {"image_size": 64, "embed_dim": 16, "window_size": 4}
SWIN = {**WINDOWS, "patch_size": 4, "depths": [1, 2], "num_heads": [2, 4]}
TWO_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BOTH = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, **TWO_HEADS}
PAIR = {**BOTH, "vocab_size": 99, "max_position_embeddings": 32, "use_cache": False}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
WAVES = {
    **{**LAYERS, "vocab_size": 30, "classifier_proj_size": 16, "num_feat_extract_layers": 3},
    **{"conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 4, 4)},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4},
}
RESNET = {"model_type": "resnet", "embedding_size": 16, **STAGES}
DETECTOR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 6}

# Text
rows("BertForSequenceClassification BertForMaskedLM BertForQuestionAnswering", padded, **ENCODER)
rows("RobertaForSequenceClassification XLMRobertaForTokenClassification CamembertForMaskedLM", padded, **ENCODER)
rows("MPNetForSequenceClassification ErnieForSequenceClassification IBertForSequenceClassification", padded, **ENCODER)
rows("AlbertForSequenceClassification ElectraForSequenceClassification", padded, **ENCODER, embedding_size=16)
rows("ConvBertForSequenceClassification RoFormerForSequenceClassification", padded, **ENCODER, embedding_size=16)
rows("MobileBertForSequenceClassification", padded, **ENCODER, embedding_size=16, intra_bottleneck_size=16)
rows("RemBertForSequenceClassification", padded, **ENCODER, input_embedding_size=16, output_embedding_size=16)
rows("DebertaForSequenceClassification", padded, **ENCODER, relative_attention=True, pos_att_type=["c2p", "p2c"])
rows(
    *("DebertaV2ForSequenceClassification", padded),
    **{**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu"},
)
GROUPS = {f"{name}_groups": 2 for name in ("q", "k", "v", "intermediate", "output")}
rows("SqueezeBertForSequenceClassification", padded, **ENCODER, **GROUPS, embedding_size=32, post_attention_groups=1)
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
rows("ModernBertForSequenceClassification", padded, **ENCODER, **TOKENS)
rows(
    *("DistilBertForSequenceClassification", padded),
    **{"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 99, "max_position_embeddings": 32},
)
rows(
    *("FunnelForSequenceClassification", padded),
    **{"vocab_size": 99, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64},
)
rows("XLNetForSequenceClassification", padded, vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=64)
rows("LongformerForSequenceClassification", padded, **ENCODER, attention_window=4)
rows("NystromformerForSequenceClassification", padded, **ENCODER, num_landmarks=7, segment_means_seq_len=7)
rows("FNetForSequenceClassification", ids, **{k: v for k, v in ENCODER.items() if k != "num_attention_heads"})
rows("LayoutLMForTokenClassification", lambda: padded() | {"bbox": torch.zeros(2, 7, 4, dtype=torch.long)}, **ENCODER)
rows("LlamaForCausalLM LlamaForSequenceClassification Qwen2ForCausalLM Phi3ForCausalLM", padded, **DECODER)
rows("StableLmForCausalLM OlmoForCausalLM Olmo2ForCausalLM CohereForCausalLM GraniteForCausalLM", padded, **DECODER)
rows("Starcoder2ForCausalLM SmolLM3ForCausalLM", padded, **DECODER)
rows("GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Qwen3ForCausalLM", padded, **DECODER, head_dim=8)
rows("MistralForCausalLM", padded, **DECODER, sliding_window=4)
rows("MixtralForCausalLM", padded, **DECODER, num_local_experts=4)
rows("PhiForCausalLM GPTNeoXForCausalLM", padded, **{**DECODER, "num_key_value_heads": 4})
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "pad_token_id": 0}
rows("GPT2LMHeadModel GPT2ForSequenceClassification", padded, **GPT, use_cache=False)
rows("GPTJForCausalLM", padded, **GPT, rotary_dim=4, use_cache=False)
rows(
    *("GPTNeoForCausalLM", padded),
    **{"vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4, "use_cache": False},
    **{"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32},
)
rows("OPTForCausalLM", padded, **ENCODER, ffn_dim=64, word_embed_proj_dim=32, use_cache=False)
rows("FalconForCausalLM", padded, **ENCODER, use_cache=False)
rows("BloomForCausalLM", padded, vocab_size=99, hidden_size=32, n_layer=2, n_head=4, use_cache=False)
rows("MptForCausalLM", padded, vocab_size=99, d_model=32, n_layers=2, n_heads=4, max_seq_len=32, use_cache=False)
rows("MambaForCausalLM", ids, vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4, use_cache=False)
rows("T5ForConditionalGeneration MT5ForConditionalGeneration", translation, **T5, use_cache=False)
rows("T5EncoderModel LongT5EncoderModel", padded, **T5, local_radius=3)
rows("BartForConditionalGeneration MBartForConditionalGeneration", translation, **PAIR)
rows("PegasusForConditionalGeneration M2M100ForConditionalGeneration", translation, **PAIR)
rows("BlenderbotForConditionalGeneration", translation, **PAIR)
rows("MarianMTModel", translation, **PAIR, pad_token_id=0, decoder_start_token_id=0)
SERIES = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "prediction_length": 4}
rows("PatchTSTForPrediction", floats(past_values=(2, 32, 3)), **SERIES, **LAYERS, d_model=32, ffn_dim=64)
rows("PatchTSMixerForPrediction", floats(past_values=(2, 32, 3)), **SERIES, d_model=16, num_layers=2)

# Images
rows("ResNetForImageClassification", image, **{k: v for k, v in RESNET.items() if k != "model_type"})
rows("RegNetForImageClassification", image, embedding_size=16, **STAGES, groups_width=8)
rows(
    "ConvNextForImageClassification ConvNextV2ForImageClassification PoolFormerForImageClassification", image, **STAGES
)
rows("DINOv3ConvNextModel", image, **STAGES)
rows("BitForImageClassification", image, embedding_size=16, **STAGES, num_groups=4)
rows("ViTForImageClassification ViTMSNForImageClassification DeiTForImageClassification", image, **VIT)
rows("IJepaForImageClassification DeiTForImageClassificationWithTeacher DINOv3ViTModel VitDetModel", image, **VIT)
rows("ViTMAEModel", image, **VIT, mask_ratio=0.25)
rows("Dinov2ForImageClassification Dinov2WithRegistersForImageClassification", image, **VIT)
rows("BeitForImageClassification Data2VecVisionForImageClassification", image, **VIT, use_relative_position_bias=True)
rows("YolosForObjectDetection", image, **{**VIT, "image_size": [64, 64]}, num_detection_tokens=5)
rows("SwinForImageClassification Swinv2ForImageClassification DonutSwinModel", image, **SWIN)
rows("Swin2SRForImageSuperResolution", image, **{**SWIN, "patch_size": 1, "depths": [2, 2], "num_heads": [2, 2]})
rows("SegformerForImageClassification SegformerForSemanticSegmentation", image, **PYRAMID, decoder_hidden_size=32)
rows("GLPNForDepthEstimation", image, **PYRAMID, decoder_hidden_size=32)
rows("PvtForImageClassification PvtV2ForImageClassification", image, image_size=64, **PYRAMID)
rows("FocalNetForImageClassification", image, image_size=64, embed_dim=16, depths=[1, 1, 1, 1])
rows("SwiftFormerForImageClassification", image, image_size=64, embed_dims=[16, 24, 32, 48], depths=[1, 1, 1, 1])
rows("MobileNetV1ForImageClassification", image, depth_multiplier=0.25)
rows("MobileNetV2ForImageClassification MobileNetV2ForSemanticSegmentation", image, depth_multiplier=0.35)
rows("MobileViTV2ForImageClassification", image, image_size=64, width_multiplier=0.25)
rows(
    *("MobileViTForImageClassification MobileViTForSemanticSegmentation", image),
    **{"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": 4},
    neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 64],
)
rows(
    *("LevitForImageClassification", image),
    **{"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]},
    key_dim=[8, 8, 8],
)
rows(
    *("HieraForImageClassification", image),
    **{"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "num_query_pool": 2},
    **{"query_stride": [2, 2], "masked_unit_size": [4, 4]},
)
rows("DetrForObjectDetection", image, **BOTH, **DETECTOR, backbone_config={**RESNET, "out_features": ["stage4"]})
rows(
    *("ConditionalDetrForObjectDetection TableTransformerForObjectDetection", image),
    **{**BOTH, **DETECTOR, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
)
rows(
    *("DeformableDetrForObjectDetection", image),
    **{**BOTH, **DETECTOR, "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}},
)
rows(
    *("UperNetForSemanticSegmentation", image),
    **{"hidden_size": 32, "auxiliary_channels": 16, "auxiliary_in_channels": 32},
    backbone_config={"model_type": "convnext", **STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
)
rows(
    *("DPTForDepthEstimation", image),
    **{**VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False},
    **{"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16},
)
rows(
    *("SamVisionModel", image),
    **{**VIT, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64},
)
rows("SuperPointForKeypointDetection", image)
rows(
    "VideoMAEForVideoClassification TimesformerForVideoClassification", video, **{**VIT, "image_size": 32}, num_frames=4
)
rows("VivitForVideoClassification", video, **LAYERS, image_size=32, num_frames=4, tubelet_size=[2, 16, 16])

# Images with text
rows("CLIPVisionModelWithProjection SiglipVisionModel BlipVisionModel", image, **VIT, projection_dim=32)
rows("CLIPTextModelWithProjection", ids, **ENCODER, projection_dim=32)
rows("CLIPModel SiglipModel", captioned, text_config=ENCODER | {"eos_token_id": 2}, vision_config=VIT)
rows("ViltModel", captioned, **ENCODER, image_size=64, patch_size=8)
rows("TrOCRForCausalLM", ids, **PAIR)

# Sound
rows("Wav2Vec2ForCTC Wav2Vec2ForSequenceClassification HubertForCTC WavLMForSequenceClassification", sound, **WAVES)
rows("UniSpeechForCTC Wav2Vec2ConformerForCTC", sound, **WAVES)
rows("SEWForCTC SEWDForCTC", sound, **WAVES, squeeze_factor=2)
rows("Data2VecAudioForCTC", sound, **{**WAVES, "num_conv_pos_embeddings": 2})
WHISPER = {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16, "vocab_size": 99, **TOKENS}
rows(
    "WhisperForConditionalGeneration",
    lambda: {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": numbers(5)},
    **{**BOTH, **WHISPER, "use_cache": False, "decoder_start_token_id": 1},
)
rows("WhisperForAudioClassification", floats(input_features=(2, 16, 40)), **BOTH, **WHISPER, classifier_proj_size=16)
rows("ASTForAudioClassification", floats(input_values=(2, 64, 32)), **LAYERS, max_length=64, num_mel_bins=32)
rows(
    *("DacModel", floats(input_values=(2, 1, 640))),
    **{"encoder_hidden_size": 4, "downsampling_ratios": [4, 2], "decoder_hidden_size": 32, "n_codebooks": 2},
    **{"codebook_size": 16, "codebook_dim": 4},
)
rows(
    *("EncodecModel", floats(input_values=(2, 1, 640))),
    **{"num_filters": 4, "upsampling_ratios": [4, 2], "hidden_size": 16, "num_lstm_layers": 1},
    **{"codebook_size": 16, "codebook_dim": 16},
)
rows("VitsModel", ids, vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=32)
rows(
    *("SpeechT5HifiGan", floats(spectrogram=(2, 8, 16))),
    **{"model_in_dim": 16, "upsample_initial_channel": 32, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4]},
    **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]},
)

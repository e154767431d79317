"""More models of transformers that `libraries.py` tries: newer decoders, mixtures of experts, states, series, sound."""

from __future__ import annotations

from typing import Any

import torch
from library_transformers import (
    BOTH,
    DECODER,
    ENCODER,
    LAYERS,
    PAIR,
    T5,
    TOKENS,
    WAVES,
    floats,
    ids,
    numbers,
    padded,
    rows,
    sound,
    translation,
)

__all__: list[str] = []

# Decoders
GROUPED = {**DECODER, "head_dim": 8}
EXPERTS = {**DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
LATENT = {
    **{**EXPERTS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}
del LATENT["num_experts"], LATENT["head_dim"]
rows("ArceeForCausalLM HeliumForCausalLM NemotronForCausalLM SeedOssForCausalLM", padded, **GROUPED)
rows("GlmForCausalLM Glm4ForCausalLM Olmo3ForCausalLM Cohere2ForCausalLM", padded, **GROUPED)
rows("Exaone4ForCausalLM Ernie4_5ForCausalLM HunYuanDenseV1ForCausalLM ApertusForCausalLM", padded, **GROUPED)
rows("MinistralForCausalLM VaultGemmaForCausalLM BitNetForCausalLM DiffLlamaForCausalLM", padded, **GROUPED)
rows("PersimmonForCausalLM", padded, **{**DECODER, "num_key_value_heads": 4})
rows("ModernBertDecoderForCausalLM", padded, **ENCODER, **TOKENS, use_cache=False)
rows("NanoChatForCausalLM", padded, **GROUPED)
rows("OlmoeForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM FlexOlmoForCausalLM", padded, **EXPERTS)
rows("Ernie4_5_MoeForCausalLM GraniteMoeForCausalLM PhimoeForCausalLM MiniMaxForCausalLM", padded, **EXPERTS)
rows("GptOssForCausalLM MiniMaxM2ForCausalLM", padded, **EXPERTS, num_local_experts=4)
rows("DeepseekV2ForCausalLM DeepseekV3ForCausalLM", padded, **LATENT)
rows("MiniCPM3ForCausalLM", padded, **LATENT)
rows("Dots1ForCausalLM Glm4MoeForCausalLM", padded, **EXPERTS, n_routed_experts=4, n_shared_experts=1)
rows("JetMoeForCausalLM", padded, **DECODER, num_local_experts=4, kv_channels=8)
rows("Llama4ForCausalLM", padded, **EXPERTS, num_local_experts=4, intermediate_size_mlp=32, attention_chunk_size=4)
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
rows(
    *("Qwen3NextForCausalLM", padded),
    **{
        **EXPERTS,
        **LINEAR,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
)
rows("Lfm2ForCausalLM", padded, **DECODER, layer_types=["conv", "full_attention"], conv_L_cache=3)
STATES = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_conv": 4}
rows("JambaForCausalLM", padded, **DECODER, num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4)
rows("BambaForCausalLM", padded, **DECODER, **STATES, attn_layer_indices=[1])
rows("FalconH1ForCausalLM", padded, **DECODER, **STATES, mamba_d_ssm=64)
rows(
    "GraniteMoeHybridForCausalLM", padded, **DECODER, **STATES, num_local_experts=2, layer_types=["mamba", "attention"]
)
SSM = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "use_cache": False}
rows("FalconMambaForCausalLM", ids, **SSM, state_size=4)
rows("Mamba2ForCausalLM", ids, **SSM, state_size=8, num_heads=4, head_dim=16, n_groups=1)
rows("RwkvForCausalLM", ids, **SSM, attention_hidden_size=32, intermediate_size=64, context_length=16)
rows("RecurrentGemmaForCausalLM", padded, **DECODER, lru_width=32, attention_window_size=4, head_dim=8)
rows("xLSTMForCausalLM", ids, **SSM, num_heads=4)
rows("CodeGenForCausalLM", padded, vocab_size=99, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, use_cache=False)
rows("GPTBigCodeForCausalLM", padded, vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False)
rows("OpenAIGPTLMHeadModel", padded, vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=32)
rows("CTRLLMHeadModel", ids, vocab_size=99, n_embd=32, n_layer=2, n_head=4, dff=64, n_positions=32, use_cache=False)
rows("BioGptForCausalLM GPTNeoXJapaneseForCausalLM", padded, **ENCODER, use_cache=False)
rows("XGLMForCausalLM", padded, vocab_size=99, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, use_cache=False)
rows("ImageGPTForImageClassification", lambda: {"input_ids": numbers(9)}, vocab_size=99, n_embd=32, n_layer=2, n_head=4)

# Encoders and pairs
rows("BigBirdForSequenceClassification MegatronBertForSequenceClassification", padded, **ENCODER)
rows("XLMRobertaXLForSequenceClassification RobertaPreLayerNormForSequenceClassification", padded, **ENCODER)
rows("XmodForSequenceClassification", padded, **ENCODER, languages=["en"], default_language="en")
rows("YosoForSequenceClassification MraForSequenceClassification", padded, **ENCODER)
rows("EsmForSequenceClassification", padded, **ENCODER, pad_token_id=1, position_embedding_type="rotary")
rows("SplinterForQuestionAnswering LukeForSequenceClassification", padded, **ENCODER, entity_vocab_size=20)
rows("NomicBertForSequenceClassification", padded, **ENCODER)
rows("EuroBertForSequenceClassification", padded, **{**DECODER, **TOKENS})
rows("CanineForSequenceClassification", ids, **{**ENCODER, "max_position_embeddings": 64}, downsampling_rate=1)
XLM = {"vocab_size": 99, "n_vocab": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32}
rows("XLMForSequenceClassification FlaubertForSequenceClassification", padded, **XLM, use_lang_emb=False)
rows(
    "LiltForTokenClassification",
    lambda: padded() | {"bbox": torch.zeros(2, 7, 4, dtype=torch.long)},
    **{**ENCODER, "hidden_size": 48},
)
REFORMER = {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_hidden_layers": 2, "num_buckets": 2}
rows(
    *("ReformerForSequenceClassification", lambda: {"input_ids": numbers(16)}),
    **{**ENCODER, **REFORMER, "attention_head_size": 8, "feed_forward_size": 64, "is_decoder": False, "hash_seed": 0},
    **{"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8},
)
rows("LEDForConditionalGeneration", translation, **PAIR, attention_window=4, max_encoder_position_embeddings=32)
rows("BigBirdPegasusForConditionalGeneration BlenderbotSmallForConditionalGeneration", translation, **PAIR)
rows("PLBartForConditionalGeneration MvpForConditionalGeneration PegasusXForConditionalGeneration", translation, **PAIR)
rows("FSMTForConditionalGeneration", translation, **PAIR, langs=["en", "de"], src_vocab_size=99, tgt_vocab_size=99)
rows("UMT5ForConditionalGeneration SwitchTransformersForConditionalGeneration", translation, **T5, use_cache=False)
rows("LongT5ForConditionalGeneration", translation, **T5, local_radius=3, use_cache=False)
PROPHET = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 4, "ngram": 2}
rows(
    *("ProphetNetForConditionalGeneration", translation),
    **{
        "vocab_size": 99,
        "hidden_size": 32,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "use_cache": False,
        **PROPHET,
    },
    **{"num_decoder_attention_heads": 4, "max_position_embeddings": 32},
)

# Series and decisions
rows(
    *(
        "DecisionTransformerModel",
        lambda: (
            floats(states=(2, 5, 6), actions=(2, 5, 3), returns_to_go=(2, 5, 1))()
            | {"timesteps": torch.arange(5).expand(2, 5), "rewards": torch.randn(2, 5, 1)}
        ),
    ),
    **{"state_dim": 6, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 20},
)


def series() -> dict[str, Any]:
    past = floats(past_values=(2, 24), past_time_features=(2, 24, 2), future_time_features=(2, 4, 2))()
    return {**past, "past_observed_mask": torch.ones(2, 24), "future_values": torch.randn(2, 4)}


SERIES = {**BOTH, "prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 8], "num_time_features": 2}
rows("TimeSeriesTransformerForPrediction", series, **SERIES)
rows("InformerForPrediction AutoformerForPrediction", series, **SERIES, label_length=4)
rows(
    *("TimesFmModelForPrediction", lambda: {"past_values": [torch.randn(32), torch.randn(32)], "freq": [0, 1]}),
    **{**LAYERS, "patch_length": 8, "context_length": 32, "horizon_length": 8, "head_dim": 8},
)

# Sound
rows("UniSpeechSatForCTC Wav2Vec2ForXVector Wav2Vec2ForAudioFrameClassification", sound, **WAVES)
rows("WavLMForCTC WavLMForXVector HubertForSequenceClassification", sound, **WAVES, tdnn_dim=(16, 16, 16, 16, 32))
BERT = {**LAYERS, "feature_projection_input_dim": 16, "vocab_size": 30, "output_hidden_size": 32}
rows("Wav2Vec2BertForCTC", floats(input_features=(2, 20, 16)), **BERT, conv_depthwise_kernel_size=7)
CLAP = {"spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "depths": [1, 2], "num_attention_heads": [2, 4]}
rows(
    *("ClapAudioModel", lambda: {"input_features": torch.randn(2, 1, 64, 16), "is_longer": torch.zeros(2, 1).bool()}),
    **{**CLAP, "patch_embeds_hidden_size": 16, "hidden_size": 32, "window_size": 4, "enable_fusion": False},
    **{"patch_stride": [4, 4]},
)
rows("ClapTextModelWithProjection", padded, **ENCODER, projection_dim=16)
rows(
    "SpeechT5ForSpeechToText",
    lambda: sound() | {"decoder_input_ids": numbers(5)},
    **{**WAVES, **BOTH, "vocab_size": 99},
    use_cache=False,
)
rows(
    "Speech2TextForConditionalGeneration",
    lambda: floats(input_features=(2, 20, 16))() | {"decoder_input_ids": numbers(5)},
    **PAIR,
    input_feat_per_channel=16,
    conv_channels=32,
    max_source_positions=40,
    max_target_positions=20,
)
rows(
    "MoonshineForConditionalGeneration",
    lambda: sound() | {"decoder_input_ids": numbers(5)},
    **DECODER
    | {
        "encoder_num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
        "encoder_num_attention_heads": 4,
        "decoder_num_attention_heads": 4,
    },
)
rows(
    "UnivNetModel",
    floats(input_features=(2, 12, 10), noise_sequence=(2, 12, 8)),
    num_mel_bins=10,
    model_in_channels=8,
    model_hidden_channels=8,
    kernel_predictor_hidden_channels=8,
    resblock_kernel_sizes=[3],
    resblock_stride_sizes=[2],
    resblock_dilation_sizes=[[1, 3]],
)
rows(
    "MimiModel",
    floats(input_values=(2, 1, 1280)),
    num_filters=4,
    hidden_size=16,
    upsampling_ratios=[4, 2],
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=4,
    intermediate_size=32,
    codebook_size=16,
    codebook_dim=8,
    num_quantizers=2,
    num_semantic_quantizers=1,
    vector_quantization_hidden_dimension=8,
    upsample_groups=16,
    frame_rate=None,
)

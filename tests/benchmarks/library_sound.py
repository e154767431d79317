"""The models of speechbrain, asteroid, encodec and vocos that `libraries.py` tries."""

from __future__ import annotations

import importlib
import operator
from functools import partial
from typing import Any

import torch
from library_models import MODELS, Read, add, named
from torch import nn

__all__: list[str] = []


def _speechbrain() -> None:
    def lobe(file: str, kind: str, inputs: Any, *args: Any, **kwargs: Any) -> None:
        add("speechbrain", f"lobes.models.{file}", kind, inputs, *args, **kwargs)

    frames, heads = (2, 24, 20), {"d_model": 16, "nhead": 4}
    narrow = {"channels": [16, 16, 16, 16, 48], "attention_channels": 8, "lin_neurons": 12, "se_channels": 8}
    lobe("ECAPA_TDNN", "ECAPA_TDNN", frames, 20, **narrow, res2net_scale=4)
    lobe("ECAPA_TDNN", "ECAPA_TDNN", frames, 20, **narrow, groups=[1, 2, 2, 2, 1], label=" groups", res2net_scale=2)
    lobe("Xvector", "Xvector", frames, tdnn_channels=[16, 16, 16, 16, 32], lin_neurons=16, in_channels=20)
    lobe("ResNet", "ResNet", frames, 20, channels=[8, 8, 16, 16], block_sizes=[1, 1, 1, 1], lin_neurons=16)
    lobe("VanillaNN", "VanillaNN", frames, (None, None, 20), dnn_neurons=16)
    small = {"cnn_channels": [8, 16], "rnn_layers": 1, "rnn_neurons": 16}
    lobe("CRDNN", "CRDNN", frames, input_shape=(None, None, 20), **small, dnn_neurons=16)
    lobe("ESPnetVGG", "ESPnetVGG", frames, (None, None, 20), **small, projection_neurons=16)
    lobe("ContextNet", "ContextNet", frames, (None, None, 20), 24, [16] * 3, 3, [1, 2, 1], 3, 2)
    wide: dict[str, Any] = {"out_channels": [8, 16], "kernel_sizes": [3, 3], "strides": [1, 2], "dilations": [1, 1]}
    lobe(
        *("convolution", "ConvolutionFrontEnd", frames, (None, None, 20)),
        **{**wide, "num_blocks": 2, "num_layers_per_block": 2, "residuals": [True, False]},
    )
    lobe("MetricGAN", "EnhancementGenerator", lambda: (torch.rand(2, 24, 257), torch.ones(2)))
    lobe("MetricGAN", "MetricDiscriminator", (2, 2, 40, 40), base_channels=8)
    lobe("EnhanceResnet", "EnhanceResnet", (2, 1600), channel_counts=[8, 8, 16], dense_nodes=32)
    lobe("Cnn14", "Cnn14", (2, 1, 64, 64), 64, 32)
    lobe("conv_tasnet", "MaskNet", (2, 16, 40), 16, 8, 16, 3, 2, 2, 2)
    lobe("conv_tasnet", "MaskNet", (2, 16, 40), 16, 8, 16, 3, 2, 2, 2, "cLN", True, label=" causal")
    lobe(
        *("dual_path", "SepformerWrapper", (2, 800)),
        **{"encoder_out_nchannels": 16, "masknet_chunksize": 10, "masknet_numlayers": 1},
        **{
            f"{way}_{key}": n for way in ("intra", "inter") for key, n in (("numlayers", 1), ("nhead", 2), ("dffn", 32))
        },
    )
    lobe(
        "HifiGAN", "UnitHifiganGenerator", lambda: torch.randint(0, 9, (2, 12, 1)), *HIFI, vocab_size=9, embedding_dim=8
    )
    lobe("HifiGAN", "HifiganGenerator", (2, 8, 12), *HIFI)
    scores = partial(Read, read=operator.itemgetter(0))
    lobe("HifiGAN", "MultiPeriodDiscriminator", (1, 1, 4000), inside=scores, label=" scores")
    lobe("RNNLM", "RNNLM", lambda: torch.randint(0, 20, (2, 9)), 20, 16, rnn_neurons=16, dnn_neurons=16)
    diffusing = named(audio=(2, 1, 512), diffusion_step=[1, 2], spectrogram=(2, 8, 2))
    lobe("DiffWave", "DiffWave", diffusing, 8, 2, 16, 2, 10)
    asr = partial(lobe, "transformer.TransformerASR", "TransformerASR")
    spoken = named(src=(2, 12, 20), tgt=[[1, 3, 4], [1, 5, 2]])
    layers = {**heads, "num_encoder_layers": 1, "num_decoder_layers": 1, "d_ffn": 32}
    asr(spoken, 9, 20, **layers, normalize_before=True)
    modern = {**layers, "attention_type": "RelPosMHAXL", "positional_encoding": None, "kernel_size": 7, "causal": False}
    modern["normalize_before"] = True
    asr(spoken, 9, 20, **modern, encoder_module="conformer", label=" conformer")
    asr(spoken, 9, 20, **modern, encoder_module="branchformer", csgu_linear_units=32, label=" branchformer")
    asr(spoken, 9, 20, **{**modern, "attention_type": "RoPEMHA"}, encoder_module="conformer", label=" rope")
    asr(
        spoken,
        9,
        20,
        **{**modern, "attention_type": "hypermixing", "positional_encoding": "fixed_abs_sine"},
        encoder_module="conformer",
        label=" hypermixing",
    )
    lobe("transformer.TransformerSE", "CNNTransformerSE", frames, 20, 20, nhead=4, num_layers=1, d_ffn=32, label="SE")
    lm = {**layers, "num_decoder_layers": 0, "vocab": 20}
    lobe("transformer.TransformerLM", "TransformerLM", lambda: torch.randint(1, 20, (2, 9)), **lm)
    add("speechbrain", "nnet.unet", "UNetModel", named(x=(2, 3, 16, 16), timesteps=[3, 5]), **UNET)
    for name in ("LiGRU", "GRU", "QuasiRNN"):
        shape, label = (None, None, 20), f"RNN-{name}-with-a-layer"
        add("speechbrain", "nnet.RNN", name, frames, 16, input_shape=shape, label=label, inside=_headed, **BOTH_WAYS)


def _headed(rnn: nn.Module) -> nn.Module:
    return Read(rnn, operator.itemgetter(0), nn.Linear(16, 4))


HIFI = (8, 1, "1", [[1, 3, 5]], [3], [4, 4], 16, [2, 2])
BOTH_WAYS: dict[str, Any] = {"num_layers": 2, "bidirectional": False}
UNET: dict[str, Any] = {
    **{"in_channels": 3, "model_channels": 16, "norm_num_groups": 4, "out_channels": 3, "num_res_blocks": 1},
    **{"attention_resolutions": [2], "channel_mult": (1, 2), "num_heads": 2},
}


def _asteroid() -> None:
    net = partial(add, "asteroid", "models")
    sound = (2, 800)
    free = {"kernel_size": 16, "stride": 8, "n_filters": 16}
    blocks = {"bn_chan": 8, "n_repeats": 1}
    net("ConvTasNet", sound, 2, n_blocks=2, hid_chan=16, skip_chan=8, **free, **blocks)
    net(
        "ConvTasNet", sound, 2, n_blocks=2, hid_chan=16, causal=True, norm_type="cLN", **free, **blocks, label=" causal"
    )
    net("DPRNNTasNet", sound, 2, hid_size=8, chunk_size=10, **free, **blocks)
    net("DPRNNTasNet", sound, 2, hid_size=8, chunk_size=10, use_mulcat=True, **free, **blocks, label=" mulcat")
    net("DPTNet", sound, 2, n_heads=2, ff_hid=16, chunk_size=10, n_repeats=1, **free)
    net("SuDORMRFNet", sound, 2, 8, 2, 2, kernel_size=21, n_filters=16)
    net("SuDORMRFImprovedNet", sound, 2, 8, 2, 2, kernel_size=21, n_filters=16)
    net("LSTMTasNet", sound, 2, n_layers=1, hid_size=16, **free)
    net("DeMask", (2, 4000), hidden_dims=(16, 16), n_filters=64, stride=32, kernel_size=64)
    net("DCUNet", (1, 4096), "mini", fix_length_mode="pad", stft_n_filters=64, stft_kernel_size=64, stft_stride=32)
    net("FasNetTAC", (1, 2, 1600), 2, 8, 8, 8, 1, chunk_size=10, hop_size=5, tac_hidden_dim=16)


def _codecs() -> None:
    seanet: dict[str, Any] = {"dimension": 16, "n_filters": 4, "ratios": [4, 2]}
    encode = partial(add, "encodec", "modules.seanet")
    for norm in ("weight_norm", "time_group_norm"):
        encode("SEANetEncoder", (2, 1, 400), **seanet, norm=norm, label=f" {norm}")
        encode("SEANetDecoder", (2, 16, 50), **seanet, norm=norm, label=f" {norm}")
    encode("SEANetEncoder", (2, 1, 400), **seanet, causal=True, true_skip=True, label=" causal")
    add("encodec", "modules.transformer", "StreamingTransformerEncoder", (2, 9, 16), 16, num_heads=4, num_layers=2)

    vocos = partial(add, "vocos", "models")
    vocos("VocosBackbone", (2, 12, 20), 12, 16, 32, 2)
    vocos("VocosResNetBackbone", (2, 12, 20), 12, 16, 2)
    MODELS["vocos:ISTFTHead"] = _vocoder
    scores = partial(Read, read=operator.itemgetter(0, 1))
    sounds: dict[str, Any] = {"inside": scores, "label": " scores"}
    add("vocos", "discriminators", "MultiPeriodDiscriminator", [(1, 800), (1, 800)], periods=(2, 3), **sounds)
    add("vocos", "discriminators", "MultiResolutionDiscriminator", [(1, 4096), (1, 4096)], fft_sizes=(256,))


def _vocoder() -> tuple[nn.Module, Any]:
    backbone = importlib.import_module("vocos.models").VocosBackbone(12, 16, 32, 2)
    head = importlib.import_module("vocos.heads").ISTFTHead(16, 32, 8)
    return nn.Sequential(backbone, head), torch.randn(2, 12, 20)


_speechbrain()
_asteroid()
_codecs()

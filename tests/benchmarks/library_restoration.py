"""The models of spandrel and super_image that `libraries.py` tries: super-resolution and restoration of images."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from library_models import MODELS, add

__all__: list[str] = []

SMALL, PATCH = (1, 3, 16, 16), (1, 3, 32, 32)
WINDOWS = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "mlp_ratio": 2.0}


def _spandrel() -> None:
    def net(place: str, kind: str, shape: tuple[int, ...] = PATCH, label: str = "", **kwargs: Any) -> None:
        folder, file = place.split(".")
        add("spandrel", f"architectures.{folder}.__arch.{file}", kind, shape, label=label or kind, **kwargs)

    swin = {**WINDOWS, "img_size": 16, "upscale": 2, "upsampler": "pixelshuffle"}
    net("ATD.atd_arch", "ATD", SMALL, **swin, category_size=16, num_tokens=8)
    net("CRAFT.CRAFT", "CRAFT", embed_dim=12, depths=[1, 1], num_heads=[2, 2], upscale=2)
    net("Compact.SRVGG", "SRVGGNetCompact", num_feat=16, num_conv=4)
    net("Compact.SRVGG", "SRVGGNetCompact", label="SRVGGNetCompact-relu", num_feat=16, num_conv=2, act_type="relu")
    halves = {"embed_dim": 16, "depth": [2, 2], "num_heads": [2, 2], "img_size": 16}
    net("DAT.DAT", "DAT", SMALL, **halves, expansion_factor=2.0, split_size=[2, 4])
    net("DCTLSA.dctlsa", "DCTLSA", SMALL, nf=20)
    net("DITN.DITN_Real", "DITN_Real", dim=16, ITL_blocks=1, SAL_blocks=1)
    net("DRCT.drct_arch", "DRCT", SMALL, **swin, gc=8)
    net("DRUNet.network_unet", "DRUNet", in_nc=3, out_nc=3, nc=[8, 16, 16, 32], nb=1)
    net("DnCNN.network_dncnn", "DnCNN", (1, 1, 32, 32), nc=16, nb=5)
    net("DnCNN.network_dncnn", "DnCNN", (1, 1, 32, 32), label="DnCNN-relu", nc=16, nb=5, act_mode="R", mode="FDnCNN")
    net("ESRGAN.RRDB", "RRDBNet", SMALL, num_filters=16, num_blocks=2)
    net("ESRGAN.RRDB", "RRDBNet", SMALL, label="RRDBNet-plus", num_filters=16, num_blocks=2, plus=True, scale=2)
    net("ESRGAN.RRDB", "RRDBNet", label="RRDBNet-shuffle", in_nc=12, num_filters=16, num_blocks=1, shuffle_factor=2)
    net("FBCNN.FBCNN", "FBCNN", nc=[8, 16, 16, 512], nb=1)
    net("FDAT.fdat", "FDAT", embed_dim=16, num_groups=2, depth_per_group=2, num_heads=2, mid_dim=16, scale=2)
    net("FFTformer.fftformer_arch", "FFTformer", dim=8, num_blocks=[1, 1, 1], num_refinement_blocks=1)
    stripes = {"num_heads_window": [1, 1], "num_heads_stripe": [1, 1], "depths": [2, 2], "embed_dim": 16}
    net("GRL.grl", "GRL", SMALL, **stripes, img_size=16, window_size=4, stripe_size=[4, 4], upscale=2)
    net("HAT.HAT", "HAT", SMALL, **swin, compress_ratio=2, squeeze_factor=4, num_feat=16)
    net("HVICIDNet.cidnet", "CIDNet", channels=[8, 8, 16, 32])
    net("KBNet.kbnet_s", "KBNet_s", width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    net(
        *("MMRealSR.mmrealsr_arch", "MMRRDBNet_test"),
        **{"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1, "num_grow_ch": 8},
        **{"num_feats": [8, 16, 16, 16], "num_blocks": [1, 1, 1, 1]},
    )
    net(
        "MixDehazeNet.MixDehazeNet",
        "MixDehazeNet",
        (1, 3, 64, 64),
        embed_dims=[8, 16, 32, 16, 8],
        depths=[1, 1, 1, 1, 1],
    )
    net("MoESR.MoESR", "MoESR", SMALL, dim=16, n_blocks=2, n_block=2, upsample_dim=16)
    net("MoSR.mosr_arch", "MoSR", dim=16, n_block=2)
    net("MoSR.mosr_arch", "MoSR", label="MoSR-dys", dim=16, n_block=2, upsampler="dys", upscale=2)
    net("NAFNet.NAFNet_arch", "NAFNet", width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    net("OmniSR.OmniSR", "OmniSR", num_feat=16, res_num=1, up_scale=2)
    net("PLKSR.PLKSR", "PLKSR", dim=16, n_blocks=2)
    net("PLKSR.PLKSR", "PLKSR", label="PLKSR-sparse", dim=16, n_blocks=2, lk_type="SparsePLK", ccm_type="DCCM")
    net("PLKSR.RealPLKSR", "RealPLKSR", dim=16, n_blocks=2)
    net("PLKSR.RealPLKSR", "RealPLKSR", label="RealPLKSR-dysample", dim=16, n_blocks=2, dysample=True)
    net("RCAN.rcan_arch", "RCAN", n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4)
    net("RGT.rgt", "RGT", **{**halves, "img_size": 32}, split_size=[4, 4])
    for kind in ("UpCunet2x", "UpCunet3x", "UpCunet4x", "UpCunet2x_fast"):
        net("RealCUGAN.upcunet_v3", kind, (1, 3, 48, 48))
    net(
        *("RestoreFormer.restoreformer_arch", "RestoreFormer", (1, 3, 64, 64)),
        **{"n_embed": 16, "embed_dim": 32, "ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "resolution": 64},
        **{"z_channels": 32, "attn_resolutions": (16,)},
    )
    net("RetinexFormer.retinexformer_arch", "RetinexFormer", n_feat=16, stage=2)
    net("SAFMN.safmn", "SAFMN", dim=16, n_blocks=2)
    net("SAFMNBCIE.safmn_bcie", "SAFMN_BCIE", dim=16, n_blocks=2, num_layers=1)
    net("SCUNet.SCUNet", "SCUNet", (1, 3, 64, 64), config=[1, 1, 1, 1, 1, 1, 1], dim=64, input_resolution=64)
    net("SPAN.span", "SPAN", num_in_ch=3, num_out_ch=3, feature_channels=16)
    net("SeemoRe.seemore_arch", "SeemoRe", num_experts=3, num_layers=2, embedding_dim=16)
    net("SwiftSRGAN.SwiftSRGAN", "Generator", num_channels=16, num_blocks=2)
    net("Swin2SR.Swin2SR", "Swin2SR", SMALL, **swin)
    net("SwinIR.SwinIR", "SwinIR", SMALL, **swin)
    nearest = {**swin, "upscale": 4, "upsampler": "nearest+conv", "resi_connection": "3conv"}
    net("SwinIR.SwinIR", "SwinIR", SMALL, label="SwinIR-nearest", **nearest)
    nine = {"depths": [1] * 9, "num_heads": [1, 1, 2, 2, 2, 2, 2, 1, 1], "win_size": 4, "embed_dim": 8}
    net("Uformer.Uformer", "Uformer", (1, 3, 64, 64), **nine, img_size=64)


def _super_image() -> None:
    def net(name: str, **config: Any) -> None:
        def make() -> tuple[Any, Any]:
            package = importlib.import_module("super_image")
            return getattr(package, f"{name}Model")(getattr(package, f"{name}Config")(**config)), torch.randn(SMALL)

        MODELS[f"super_image:{name}-x{config['scale']}"] = make

    for scale in (2, 4):
        net("Edsr", scale=scale, n_resblocks=2, n_feats=16)
    net("A2n", scale=2, nf=16, unf=8, nb=2)
    net("Awsrn", scale=2, n_resblocks=1, block_feats=32, n_feats=16, n_awru=2)
    net("Carn", scale=2)
    net("Ddbpn", scale=2)
    net("Drn", scale=4, n_blocks=2, n_feats=8)
    net("Han", scale=2, n_resgroups=10, n_resblocks=1, n_feats=64)
    net("Mdsr", scale=2)
    net("Msrn", scale=2, n_blocks=2, n_feats=16)
    net("Pan", scale=2, nf=16, unf=8, nb=2)
    net("Physicssr", scale=2, n_resblocks=2, n_feats=16)
    net("Rcan", scale=2, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4)


_spandrel()
_super_image()

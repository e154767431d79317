"""The samples that scores and compensation look at if the user gives none.

What they look at matters more than how. For a model that takes images these are crops of photographs. If the statistics
in the model's BatchNorms say that it was trained on something else, they are changed until they have these statistics.
For other models with BatchNorms, that is done with noise. Models of text get random tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph
from fxprune.compensation.photographs import PHOTOGRAPHS, SCALES, Scale, crops
from fxprune.compensation.synthesis import fit_to_statistics, mismatch, pink_noise
from fxprune.compensation.tokens import has_tokens, token_samples
from fxprune.data import Batch
from fxprune.errors import CannotScoreError
from fxprune.layers.batch_norm import has_statistics
from fxprune.progress import Progress, shown
from fxprune.tracing.notes import call_of

__all__ = ["MadeSamples", "can_make_samples", "make_samples"]

# The number of photographs is such that a pass over all takes these FLOPs, within limits. Not tuned.
_FLOPS_PER_PASS = 1e12
_FEWEST = 16
# The same where samples are fitted to statistics, for each step, and the FLOPs of one sample above which that takes
# minutes. Not tuned.
_FLOPS_PER_STEP = 1.8e10
_FEWEST_FITTED, _MOST_FLOPS = 8, 2e10
# Photographs with a larger mismatch are fitted to the statistics. That of other ImageNet photographs is 0.06 for
# EfficientNet-Lite0, that of photographs 0.26 and more for nets trained on Fashion-MNIST.
_ALIKE = 0.15
# Images with a side shorter than this show nothing.
_SMALLEST_SIDE = 16


@dataclass(frozen=True)
class MadeSamples:
    """Samples, and what they are.

    Attributes:
        batch: the samples.
        origin: one line.
    """

    batch: Batch
    origin: str


def make_samples(
    graph: ChannelGraph, most: int = 128, *, seed: int = 0, progress: bool | Progress = False
) -> MadeSamples | None:
    """Samples for a model: photographs, random tokens, or inputs made from its BatchNorm statistics.

    Args:
        graph: the analysed model; it is not changed.
        most: how many photographs or texts at most; fewer for a model of more FLOPs. Twice as many are fitted to
            statistics, or as many as its FLOPs allow.
        seed: of everything random.
        progress: show bars in a terminal, or call this function with the steps done.

    Returns:
        None where `can_make_samples` says that there are none.

    Raises:
        CannotScoreError: the samples became NaN or infinite.
    """
    if not can_make_samples(graph):
        return None
    with shown(progress) as show:
        made = _made(graph, most, seed, show)
    if not all(tensor.isfinite().all() for tensor in made.batch.inputs):
        raise CannotScoreError("the samples became NaN or infinite: check the weights for NaN and infinity")
    return made


def can_make_samples(graph: ChannelGraph) -> bool:
    """Whether there are samples for a model.

    There are none for one with weights narrower than float32. One that reads no tokens has to have one floating-point
    input, and it takes images, or has BatchNorms with statistics and at most 20 GFLOPs.
    """
    example = _only_input(graph.module)
    if _like(graph.module, torch.empty(0)).element_size() < 4:
        return False
    if example is None:
        return has_tokens(graph.module)
    return _is_image(example) or (_has_statistics(graph.module) and _flops(graph, example.shape[0]) <= _MOST_FLOPS)


def _made(graph: ChannelGraph, most: int, seed: int, show: Progress) -> MadeSamples:
    found = _only_input(graph.module)
    if found is None:
        count = _affordable(_flops(graph, Batch(*call_of(graph.module)).size), most)
        return MadeSamples(token_samples(graph.module, count, seed), f"{count} texts of random tokens")
    example = found.to(_like(graph.module, found))
    flops, known = _flops(graph, example.shape[0]), _has_statistics(graph.module)
    fitted = int(max(min(_FLOPS_PER_STEP / flops, 2 * most), _FEWEST_FITTED))
    far = ""
    if _is_image(example):
        plain = _affordable(flops, most)
        scale, off = _scale(graph.module, example, seed, known)
        if not known or off <= _ALIKE or flops > _MOST_FLOPS:
            return _photographs(example, plain, scale, seed, f"; mismatch with BatchNorm statistics {off:.2f}" * known)
        batch, what = _photographs(example, fitted, scale, seed).batch, "crops of photographs"
        far = f" from {off:.2f}"
    else:
        random = torch.Generator().manual_seed(seed)
        noise = pink_noise((fitted, *example.shape[1:]), random).to(example)
        batch, what = Batch((noise,), {}, checked=True), "inputs of noise"
    inputs = fit_to_statistics(graph.module, batch.args[0], progress=show)
    left = mismatch(graph.module, inputs)
    origin = f"{len(inputs)} {what}, fitted to BatchNorm statistics (mismatch{far} to {left:.2f})"
    return MadeSamples(replace(batch, args=(inputs,)), origin)


def _only_input(module: fx.GraphModule) -> Tensor | None:
    """The example of the model's only input, if it is a batch of floating-point numbers."""
    args, kwargs = call_of(module)
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        return None
    return args[0] if args[0].is_floating_point() and args[0].dim() >= 2 else None


def _like(module: fx.GraphModule, example: Tensor) -> Tensor:
    """A tensor on the device and in the dtype of the weights."""
    return next((value for value in module.parameters() if value.is_floating_point()), example)


def _has_statistics(module: fx.GraphModule) -> bool:
    return any(map(has_statistics, module.modules()))


def _flops(graph: ChannelGraph, samples: int) -> float:
    """FLOPs of one sample of an example of so many."""
    return max(graph.flops.total / max(samples, 1), 1.0)


def _affordable(flops: float, most: int) -> int:
    """How many samples that need no fitting, if one of them costs these FLOPs."""
    return min(most, max(int(_FLOPS_PER_PASS / flops), _FEWEST))


def _is_image(example: Tensor) -> bool:
    """Whether it could be an image, grey or coloured, of a size that shows something."""
    return example.dim() == 4 and example.shape[1] in (1, 3) and min(example.shape[2:]) >= _SMALLEST_SIDE


def _photographs(example: Tensor, count: int, scale: Scale, seed: int, more: str = "") -> MadeSamples:
    pixels = scale(crops(count, example.shape[1], example.shape[2:], seed)).to(example)
    # A photograph of which parts were fitted to is no judge.
    clusters = torch.arange(count) % PHOTOGRAPHS
    batch = Batch((pixels,), {}, clusters=clusters, checked=True)
    return MadeSamples(batch, f"{count} crops of photographs, {scale.name}{more}")


def _scale(module: fx.GraphModule, example: Tensor, seed: int, known: bool) -> tuple[Scale, float]:
    """The scale of pixel values that the model was trained on, as far as can be told, and the mismatch of statistics.

    BatchNorm statistics tell which of the scales it is, that of the model's `pretrained_cfg` among them. Without these
    it is that one; without it, that of an example without negative values, or else that of ImageNet.
    """
    scales = [*_configured(module), *SCALES]
    if known:
        pixels = crops(_FEWEST, example.shape[1], example.shape[2:], seed)
        found = [mismatch(module, scale(pixels).to(example)) for scale in scales]
        # Not a number is worse than any.
        off, place = min((math.inf if math.isnan(off) else off, place) for place, off in enumerate(found))
        return scales[place], off
    low, high = float(example.min()), float(example.max())
    if len(scales) == len(SCALES) and 0 <= low < high:
        return scales[-2 if high <= 1 else -1], 0.0
    return scales[0], 0.0


def _configured(module: fx.GraphModule) -> list[Scale]:
    """The scale in a timm model's configuration, if there is one."""
    config = getattr(module, "pretrained_cfg", None)
    if not isinstance(config, dict):
        config = getattr(config, "__dict__", {})
    mean, std = config.get("mean"), config.get("std")
    if not mean or not std:
        return []
    return [Scale("the mean and deviation of its configuration", tuple(mean), tuple(std))]

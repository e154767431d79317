"""A batch made from the model itself: inputs whose statistics are those that its BatchNorm layers remember."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph
from fxprune.layers.batch_norm import has_statistics
from fxprune.progress import Progress, silent
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.tracing.notes import call_of

__all__ = ["pink_noise", "synthesize"]

# FLOPs of a forward pass that a step may cost; what is left out above `_MOST` would take minutes.
_WORK, _MOST = 1.8e10, 2e10
_FEWEST, _LARGEST = 8, 256
# Pixels along the shorter side: images of fewer say little.
_SMALLEST = 32
# Learning rates: of values, and of spectra at half the resolution and at the whole.
_RATE, _SPECTRA_RATES = 0.12, (0.1, 0.06)
_BETAS = (0.8, 0.99)
# The part of the steps that is made at half the resolution, where there are such.
_COARSE = 0.7


@keep_freed_memory()
def synthesize(
    graph: ChannelGraph, size: int | None = None, *, steps: int = 20, seed: int = 0, progress: Progress = silent
) -> Tensor | None:
    """Inputs that the model could have been trained on, as far as its BatchNorm statistics tell.

    Starts from noise with the spectrum of natural images and follows the gradient of the mismatch of every BatchNorm's
    input statistics (as DeepInversion does: Yin et al., CVPR 2020, without its other terms). Of images that the model
    takes at half the resolution too, and that say something there, the first steps are made at that, a quarter of the
    work, and what is changed are Fourier coefficients, each in units of what it is in natural images (as in Olah et
    al., "Feature Visualization", Distill 2017).

    Args:
        graph: the analysed model; it is not changed.
        size: how many inputs; default 8 to 256, fewer for a model of more FLOPs.
        steps: optimisation steps.
        seed: of the noise.
        progress: is told of the steps done.

    Returns:
        Shape (size, ...), or None where that cannot be done: the model has no BatchNorm with statistics, more than one
        input, one that is not floating-point, or weights narrower than float32; and, unless a size is given, where it
        has more than 20 GFLOPs.
    """
    args, kwargs = call_of(graph.module)
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    example = args[0]
    if example.dim() < 2 or not any(map(has_statistics, graph.module.modules())):
        return None
    weight = next(parameter for parameter in graph.module.parameters() if parameter.is_floating_point())
    if weight.element_size() < 4:
        return None
    flops = graph.flops.total / max(example.shape[0], 1)
    if size is None:
        if flops > _MOST:
            return None
        size = int(min(max(_WORK / max(flops, 1), _FEWEST), _LARGEST))
    random = torch.Generator().manual_seed(seed)
    batch = pink_noise((size, *example.shape[1:]), random).to(weight)
    if batch.dim() == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    reader = _StatisticsReader(graph.module)
    done = 0
    with _quickly(graph.module), in_eval_without_grad(graph.module), torch.enable_grad():
        full, half = list(example.shape[2:]), [n // 2 for n in example.shape[2:]]
        coarse = round(steps * _COARSE) if _takes(graph.module, batch[:1], half) else 0
        kind, rates = (_Spectra, _SPECTRA_RATES) if coarse else (_Values, (_RATE, _RATE))
        for resolution, more, rate in zip((half, full), (coarse, steps - coarse), rates, strict=True):
            if not more:
                continue
            made = kind(_resized(batch, resolution), rate)
            optimizer = torch.optim.Adam([{"params": [one], "lr": own} for one, own in made.learned], betas=_BETAS)
            for _ in range(more):
                loss = reader.mismatch(made.inputs())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
                progress("synthesize", done, steps, {"mismatch": float(loss.detach())})
            batch = made.inputs().detach()
    return batch


def _takes(module: fx.GraphModule, image: Tensor, size: list[int]) -> bool:
    """Whether the input is an image that says something at a lower resolution, and the model runs on it."""
    if image.dim() != 4 or min(size) < _SMALLEST:
        return False
    try:
        with torch.no_grad():
            module(_resized(image, size))
    except Exception:
        return False
    return True


def _resized(batch: Tensor, size: list[int]) -> Tensor:
    """The same at another resolution, of images."""
    if batch.dim() != 4 or list(batch.shape[2:]) == size:
        return batch
    return F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)


def pink_noise(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Noise of unit variance whose amplitude falls as 1/f along the last two dimensions, as in natural images.

    Channels share a part of it, and each has a level of its own. Tensors of fewer than four dimensions get white noise.

    Args:
        shape: (samples, channels, ..., rows, columns).
        random: where it comes from.
    """
    white = torch.randn(shape, generator=random)
    if len(shape) < 4:
        return white
    shared = white.mean(dim=1, keepdim=True) * white.shape[1] ** 0.5
    derive_seed = 0.85 * shared + 0.5 * white
    noise = torch.fft.irfft2(torch.fft.rfft2(derive_seed) * _amplitudes(shape[-2:]), s=shape[-2:])
    level = 0.5 * torch.randn((shape[0], shape[1], *(1,) * (len(shape) - 2)), generator=random)
    normalised: Tensor = noise / noise.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    return normalised + level


def _amplitudes(size: Sequence[int]) -> Tensor:
    """Of the Fourier coefficients of natural images of so many rows and columns: 1/f, of the mean square 1."""
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None, :]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1.0 / max(size))
    amplitudes: Tensor = frequency.reciprocal() / frequency.pow(-2).mean().sqrt()
    return amplitudes


class _Values:
    """Inputs by their own values.

    Attributes:
        learned: what stands for the inputs, each with its learning rate.
    """

    def __init__(self, inputs: Tensor, rate: float) -> None:
        self.learned = [(inputs.clone().requires_grad_(True), rate)]

    def inputs(self) -> Tensor:
        """The inputs as they are now."""
        return self.learned[0][0]


class _Spectra(_Values):
    """Images by their Fourier coefficients, in units of what these are in natural images, and a mean of each channel.

    The mean is that of all images: what is dark beside the others stays so.
    """

    def __init__(self, inputs: Tensor, rate: float) -> None:
        self._size = inputs.shape[2:]
        self._unit = (math.sqrt(math.prod(self._size)) * _amplitudes(self._size)).to(inputs)
        parts = torch.view_as_real(torch.fft.rfft2(inputs.contiguous()) / self._unit).contiguous()
        mean = inputs.new_zeros(1, inputs.shape[1], 1, 1)
        self.learned = [(parts.requires_grad_(True), rate), (mean.requires_grad_(True), _RATE)]

    def inputs(self) -> Tensor:
        (parts, _), (mean, _) = self.learned
        images: Tensor = torch.fft.irfft2(torch.view_as_complex(parts) * self._unit, s=self._size)
        return (images + mean).contiguous(memory_format=torch.channels_last)


@contextmanager
def _quickly(module: nn.Module) -> Iterator[None]:
    """Filters lie in memory as depthwise convolutions of a CPU like them; afterwards as before."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    # One weight may be that of two.
    filters = list({id(part.weight): part.weight for part in convolutions}.values())
    before = [parameter.data for parameter in filters]
    for parameter in filters:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter, data in zip(filters, before, strict=True):
            parameter.data = data


class _StatisticsReader(fx.Interpreter):
    """Runs the model and adds up how far each BatchNorm's input is from what it remembers."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=True)
        self._found: list[Tensor] = []

    def mismatch(self, batch: Tensor) -> Tensor:
        """The mean over all BatchNorms of squared differences of mean and deviation, in remembered deviations."""
        self._found = []
        # Models may write into their inputs.
        self.run(batch.clone())
        return torch.stack(self._found).mean()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a module; of a BatchNorm look at the input first."""
        module: Any = self.fetch_attr(target)
        if has_statistics(module):
            x = args[0] if args else kwargs["input"]
            dims = [d for d in range(x.dim()) if d != 1]
            scale = (module.running_var + module.eps).sqrt()
            mean = (x.mean(dims) - module.running_mean) / scale
            deviation = (x.var(dims, correction=0) + module.eps).sqrt() / scale
            self._found.append(mean.square().mean() + (deviation - 1).square().mean())
        return super().call_module(target, args, kwargs)

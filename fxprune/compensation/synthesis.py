"""Samples that have the statistics that a model's BatchNorm layers remember."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target

from fxprune.data import Batch, running_on
from fxprune.errors import CannotScoreError
from fxprune.layers.batch_norm import has_statistics
from fxprune.progress import Progress, shown
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.eval_mode import in_eval_without_grad

__all__ = ["fit_to_statistics", "mismatch", "pink_noise"]

# Images with fewer pixels along the shorter side show little.
_SMALLEST_SIDE = 32
# The fraction of the steps at half the resolution.
_COARSE = 0.7
# Adam's learning rates for values, and for spectra at half the resolution and at the whole.
_RATE, _SPECTRA_RATES = 0.06, (0.1, 0.06)
_BETAS = (0.8, 0.99)


@keep_freed_memory()
def fit_to_statistics(
    traced: fx.GraphModule, inputs: Tensor, *, steps: int = 60, progress: bool | Progress = False
) -> Tensor:
    """Inputs that the model could have been trained on, as far as its BatchNorm statistics tell.

    They follow the gradient of the mismatch between each BatchNorm's statistics and its inputs (DeepInversion, Yin et
    al., CVPR 2020, without its other terms). If the model takes images at half the resolution too, and they are not
    too small, the first steps are made there, which is a quarter of the work; and the variables are Fourier
    coefficients, in units of those of natural images (Olah et al., "Feature Visualization", Distill 2017).

    Args:
        traced: a model with BatchNorms that have statistics; it is not changed.
        inputs: where to start (samples, ...), on the model's device.
        steps: optimisation steps.
        progress: show bars in a terminal, or call this function with the steps done.

    Returns:
        Changed inputs, of the same shape.
    """
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with shown(progress) as show, _channels_last(traced), in_eval_without_grad(traced), torch.enable_grad():
        return _fitted(traced, inputs, steps, show)


def mismatch(traced: fx.GraphModule, inputs: Tensor) -> float:
    """How far the moments of BatchNorms' inputs are from those remembered, in units of the deviation remembered.

    It is the mean over BatchNorms of the mean squares of both differences: of the means, and of the deviations.
    """
    with in_eval_without_grad(traced):
        return float(_StatisticsReader(traced).mismatch(inputs))


def _fitted(module: fx.GraphModule, batch: Tensor, steps: int, show: Progress) -> Tensor:
    """The batch after so many steps."""
    reader, done = _StatisticsReader(module), 0
    full, half = list(batch.shape[2:]), [n // 2 for n in batch.shape[2:]]
    coarse = round(steps * _COARSE) if _takes(module, batch[:1], half) else 0
    kind, rates = (_Spectra, _SPECTRA_RATES) if coarse else (_Values, (_RATE, _RATE))
    for resolution, count, rate in zip((half, full), (coarse, steps - coarse), rates, strict=True):
        if not count:
            continue
        made = kind(_resized(batch, resolution), rate)
        optimizer = torch.optim.Adam([{"params": [one], "lr": own} for one, own in made.learned], betas=_BETAS)
        for _ in range(count):
            loss = reader.mismatch(made.inputs())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            show("synthesize", done, steps, {"mismatch": float(loss.detach())})
        batch = made.inputs().detach()
    return batch


def _takes(module: fx.GraphModule, image: Tensor, size: list[int]) -> bool:
    """Whether the input is an image that shows something at a lower resolution, and the model runs on it."""
    if image.dim() != 4 or min(size) < _SMALLEST_SIDE:
        return False
    try:
        with torch.no_grad():
            module(_resized(image, size))
    except Exception:
        return False
    return True


def _resized(batch: Tensor, size: list[int]) -> Tensor:
    """Images at another resolution; anything else as it is."""
    if batch.dim() != 4 or list(batch.shape[2:]) == size:
        return batch
    return F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)


def pink_noise(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Noise of unit variance whose amplitude falls as 1/f along the last two dimensions, as in natural images.

    Channels share a part of it, and each has a level of its own. For fewer than four dimensions it is white noise.

    Args:
        shape: (samples, channels, ..., rows, columns).
        random: draws the noise.
    """
    white = torch.randn(shape, generator=random)
    if len(shape) < 4:
        return white
    shared = white.mean(dim=1, keepdim=True) * white.shape[1] ** 0.5
    mixed = 0.85 * shared + 0.5 * white
    noise = torch.fft.irfft2(torch.fft.rfft2(mixed) * _amplitudes(shape[-2:]), s=shape[-2:])
    level = 0.5 * torch.randn((shape[0], shape[1], *(1,) * (len(shape) - 2)), generator=random)
    normalised: Tensor = noise / noise.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    return normalised + level


def _amplitudes(size: Sequence[int]) -> Tensor:
    """The amplitudes of Fourier coefficients in natural images of (rows, columns): 1/f, of mean square 1."""
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None, :]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1.0 / max(size))
    amplitudes: Tensor = frequency.reciprocal() / frequency.pow(-2).mean().sqrt()
    return amplitudes


class _Values:
    """Inputs represented by their values.

    Attributes:
        learned: the tensors that represent the inputs, each with its learning rate.
    """

    def __init__(self, inputs: Tensor, rate: float) -> None:
        self.learned = [(inputs.clone().requires_grad_(True), rate)]

    def inputs(self) -> Tensor:
        """The inputs as they are now."""
        return self.learned[0][0]


class _Spectra(_Values):
    """Images represented by Fourier coefficients, in units of those of natural images, and a mean for each channel.

    All images share the mean, so that an image darker than the others stays so.
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
def _channels_last(module: nn.Module) -> Iterator[None]:
    """Within it, filters are in channels-last memory format, in which depthwise convolutions are fast on a CPU."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    # Two convolutions may share a weight.
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
    """Runs the model and compares the inputs of each BatchNorm with its statistics."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=True)
        self._found: list[Tensor] = []

    def mismatch(self, batch: Tensor) -> Tensor:
        """Squared differences of mean and deviation, in units of the running deviation: the mean over BatchNorms."""
        self._found = []
        with running_on(Batch((batch,), {}), CannotScoreError):
            # Models may write into their inputs.
            self.run(batch.clone())
        return torch.stack(self._found).mean()

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> object:
        """Run a module, and look at the input of a BatchNorm first."""
        module = self.fetch_attr(str(target))
        if has_statistics(module):
            x = args[0] if args else kwargs["input"]
            assert isinstance(x, Tensor)
            dims = [d for d in range(x.dim()) if d != 1]
            scale = (module.running_var + module.eps).sqrt()
            mean = (x.mean(dims) - module.running_mean) / scale
            deviation = (x.var(dims, correction=0) + module.eps).sqrt() / scale
            self._found.append(mean.square().mean() + (deviation - 1).square().mean())
        return super().call_module(target, args, kwargs)

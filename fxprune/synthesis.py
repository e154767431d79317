"""A batch made from the model itself: inputs whose statistics are those that its BatchNorm layers remember."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.progress import Progress, silent

__all__ = ["pink_noise", "synthesize"]


def synthesize(
    traced: fx.GraphModule, size: int = 32, *, steps: int = 24, seed: int = 0, progress: Progress = silent
) -> Tensor | None:
    """Inputs that the model could have been trained on, as far as its BatchNorm statistics tell.

    Starts from noise with the spectrum of natural images and follows the gradient of the mismatch of every BatchNorm's
    input statistics (as DeepInversion does, Yin et al., CVPR 2020). It stops early on purpose: inputs inverted to a low
    loss make the model over-confident.

    Args:
        traced: what `fxprune.trace` returns, for a model with one floating-point input; it is not changed.
        size: how many inputs.
        steps: optimisation steps; none are made where the model has no BatchNorm.

    Returns:
        Shape (size, ...), or None where the model takes more than one input or anything but floats.
    """
    args, kwargs = traced.meta["example_inputs"]
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    example = args[0]
    random = torch.Generator().manual_seed(seed)
    batch = pink_noise((size, *example.shape[1:]), random).to(example)
    if not any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in traced.modules()):
        return batch
    reader = _StatisticsReader(traced)
    batch.requires_grad_(True)
    optimizer = torch.optim.Adam([batch], lr=0.08)
    for step in range(steps):
        optimizer.zero_grad()
        loss = reader.mismatch(batch)
        (batch.grad,) = torch.autograd.grad(loss, [batch])
        optimizer.step()
        progress("synthesize", step + 1, steps, {"mismatch": float(loss)})
    return batch.detach()


def pink_noise(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Noise of unit variance whose amplitude falls as 1/f along the last two dimensions, as in natural images.

    Tensors of fewer than four dimensions get white noise.
    """
    white = torch.randn(shape, generator=random)
    if len(shape) < 4:
        return white
    rows, columns = torch.fft.fftfreq(shape[-2])[:, None], torch.fft.rfftfreq(shape[-1])[None, :]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1.0 / max(shape[-2:]))
    shared = white.mean(dim=1, keepdim=True) * white.shape[1] ** 0.5
    mixed = 0.85 * shared + 0.5 * white
    noise = torch.fft.irfft2(torch.fft.rfft2(mixed) / frequency, s=shape[-2:])
    level = 0.5 * torch.randn((shape[0], shape[1], *(1,) * (len(shape) - 2)), generator=random)
    normalised: Tensor = noise / noise.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
    return normalised + level


class _StatisticsReader(fx.Interpreter):
    """Runs the model and adds up how far each BatchNorm's input is from what it remembers."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=True)
        self._total: list[Tensor] = []

    def mismatch(self, batch: Tensor) -> Tensor:
        self._total = []
        mode = {module: module.training for module in self.module.modules()}
        self.module.eval()
        wanted = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            self.run(batch)
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
            for module, training in mode.items():
                module.training = training
        return torch.stack(self._total).mean()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module: nn.Module = self.fetch_attr(target)
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            x = args[0]
            dims = [d for d in range(x.dim()) if d != 1]
            scale = (module.running_var + module.eps).sqrt()
            mean = (x.mean(dims) - module.running_mean) / scale
            deviation = x.var(dims, unbiased=False).add(module.eps).sqrt() / scale
            self._total.append(mean.square().mean() + (deviation - 1).square().mean())
        return super().call_module(target, args, kwargs)

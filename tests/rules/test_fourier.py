"""Fourier transforms and complex numbers."""

from __future__ import annotations

from typing import Any

import torch
from invariant import image, net, parameter, tokens
from layer_nets import images, invariant_test
from torch import Tensor, nn


def filtered(self: Any, x: Tensor) -> Tensor:
    """A filter for each channel, as in global filter networks."""
    spectrum = torch.fft.rfft2(self.a(x), dim=(2, 3), norm="ortho") * torch.view_as_complex(self.weight)
    return self.out(torch.fft.irfft2(spectrum, s=(6, 6), dim=(2, 3), norm="ortho"))


def turned(self: Any, x: Tensor) -> Tensor:
    z = torch.polar(self.a(x), self.b(x)) + torch.complex(self.b(x), self.a(x)).conj()
    return self.out(torch.view_as_real(z).sum(-1) + z.angle())


NETS = {
    "a filter for each channel": (
        lambda: net(filtered, a=nn.Conv2d(3, 8, 1), weight=parameter(8, 6, 4, 2), out=nn.Conv2d(8, 2, 1)),
        image(),
        8,
    ),
    "transforms of one and of many dimensions of space": (
        lambda: images(
            lambda self, x: (torch.fft.fft(x) + torch.fft.fftn(x, dim=(2, 3)) + torch.fft.fftn(x, s=(6, 6))).abs()
        ),
        image(),
        8,
    ),
    "moved over space": (lambda: images(lambda self, x: torch.fft.fftshift(x, (2, 3)).cosh()), image(), 8),
    "a transform over channels is frozen": (lambda: images(lambda self, x: torch.fft.fft(x, dim=1).abs()), image(), 0),
    "complex numbers of two parts": (
        lambda: net(turned, a=nn.Linear(4, 8), b=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        tokens(),
        8,
    ),
    "complex numbers of parts that are broadcast": (
        lambda: net(
            lambda self, x: self.out(torch.complex(self.a(x), self.b(x[:, :1])).abs()),
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
}


test_transforms_and_complex_numbers_keep_the_invariant = invariant_test(NETS)

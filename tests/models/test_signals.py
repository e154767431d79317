"""Models of sound and of frequencies: dilated convolutions, spectrograms, Fourier transforms, complex weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Cases, conv
from invariant import check_invariant, image, net, parameter, tokens
from torch import Tensor, nn

import fxprune

CASES = Cases()


@CASES.model(
    tokens(4, 16),
    20,
    start=nn.Conv1d(4, 6, 1),
    filters=nn.ModuleList(nn.Conv1d(6, 5, 2, dilation=2**k) for k in range(2)),
    gates=nn.ModuleList(nn.Conv1d(6, 5, 2, dilation=2**k) for k in range(2)),
    residuals=nn.ModuleList(nn.Conv1d(5, 6, 1) for _ in range(2)),
    skips=nn.ModuleList(nn.Conv1d(5, 4, 1) for _ in range(2)),
    end=nn.Conv1d(4, 2, 1),
)
def wavenet(self, x):
    x = self.start(x)
    total = 0
    for f, g, r, s in zip(self.filters, self.gates, self.residuals, self.skips, strict=True):
        y = torch.tanh(f(x)) * torch.sigmoid(g(x))
        skip = s(y)
        total = skip + (total[..., -skip.size(-1) :] if isinstance(total, Tensor) else total)
        x = r(y) + x[:, :, -y.size(2) :]
    return self.end(F.relu(total))


@CASES.model(
    torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(1)),
    6,
    a=nn.Conv2d(2, 6, 3, padding=1),
    b=nn.Conv2d(6, 2, 3, padding=1),
    window=torch.hann_window(16),
)
def mask_of_a_spectrogram(self, x):
    z = torch.stft(x.flatten(0, 1), 16, 4, window=self.window, return_complex=True)
    m = self.b(self.a(torch.view_as_real(z).permute(0, 3, 1, 2)).relu()).permute(0, 2, 3, 1)
    z = z * torch.view_as_complex(m.contiguous())
    return torch.istft(z, 16, 4, window=self.window, length=x.shape[-1])


@CASES.model(
    (tokens(width=8), torch.tensor([5, 3])),
    14,
    other_batch=False,
    a=nn.Linear(8, 6),
    c=nn.Conv1d(6, 8, 3, padding=1),
    head=nn.Linear(8, 3),
)
def mask_from_lengths(self, x, lengths):
    longest = int(torch.max(lengths).item())
    mask = torch.arange(longest, device=x.device).expand(x.shape[0], longest) < lengths[:, None]
    x = self.a(x[:, :longest]) * mask[..., None]
    return self.head(self.c(x.transpose(1, 2)).transpose(1, 2).relu())


@CASES.model(image(3, 8), 6, a=conv(3, 6), w=nn.Parameter(torch.randn(8, 5, 6, 2)), head=nn.Linear(6, 2))
def global_filter(self, x):
    x = self.a(x).permute(0, 2, 3, 1)
    y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.w)
    return self.head(x + torch.fft.irfft2(y, s=(8, 8), dim=(1, 2), norm="ortho"))


@CASES.model(
    image(3, 8),
    14,
    a=nn.Conv2d(3, 6, 1),
    w=nn.Parameter(torch.randn(6, 6, 3, 3, dtype=torch.cfloat)),
    c=nn.Conv2d(6, 6, 1),
    p=nn.Conv2d(6, 8, 1),
    q=nn.Conv2d(8, 2, 1),
)
def fourier_neural_operator(self, x):
    """Its weight is complex."""
    x = self.a(x)
    f = torch.fft.rfft2(x)
    low = torch.zeros_like(f)
    low[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", f[:, :, :3, :3], self.w)
    x = F.gelu(torch.fft.irfft2(low, s=x.shape[-2:]) + self.c(x))
    return self.q(F.gelu(self.p(x)))


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), w=parameter(8, 6, 4, 2), o=nn.Conv2d(8, 2, 1))
def filter_in_the_frequency_domain(self, x):
    return self.o(torch.fft.irfft2(torch.fft.rfft2(self.a(x)) * torch.view_as_complex(self.w)))


@CASES.model(tokens(), 4, a=nn.Linear(4, 8), f=torch.randn(4, dtype=torch.complex128), o=nn.Linear(8, 2))
def pairs_of_channels_as_complex_numbers(self, x):
    x = torch.view_as_complex(self.a(x).unflatten(-1, (4, 2))) * self.f
    return self.o(torch.view_as_real(x).flatten(-2))


@CASES.model(
    tokens(6, 8),
    12,
    i=nn.Linear(8, 8),
    mlp=nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
    norm=nn.LayerNorm(8),
    head=nn.Linear(8, 2),
)
def tokens_mixed_by_fourier_transforms(self, x):
    x = self.i(x)
    x = self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
    return self.head(x + self.mlp(x))


@CASES.model(
    tokens(6, 8),
    6,
    i=nn.Linear(8, 18),
    short=nn.Conv1d(18, 18, 3, padding=2, groups=18),
    k=nn.Parameter(torch.randn(6, 6)),
    o=nn.Linear(6, 8),
)
def long_convolution(self, x):
    length = x.shape[1]
    a, b, v = self.short(self.i(x).transpose(1, 2))[..., :length].split(6, dim=1)
    n = 2 * length
    y = torch.fft.irfft(torch.fft.rfft(a * v, n=n) * torch.fft.rfft(self.k, n=n), n=n)[..., :length]
    return self.o((y * b).transpose(1, 2))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_of_signals_is_pruned_correctly(case):
    case.check()


def bands_of_spectra(self, x):
    real, imaginary = F.conv1d(x[:, None], self.waves, stride=4).chunk(2, 1)
    x = torch.log(self.bands @ (real**2 + imaginary**2) + 1e-6)
    return self.head(self.a(x).mean(-1))


def test_channels_of_buffers_alone_get_gates_too():
    model = net(
        bands_of_spectra,
        waves=torch.randn(18, 1, 16),
        bands=torch.rand(9, 9),
        a=nn.Conv1d(9, 12, 3),
        head=nn.Linear(12, 2),
    )
    x = torch.randn(2, 80, generator=torch.Generator().manual_seed(1))
    graph = check_invariant(model.eval(), x, 30)
    gated = fxprune.insert_gates(graph)
    assert torch.equal(gated(x.double()), model(x.double()))
    learned = fxprune.learn_gates(graph, [x.double()], flops=0.5, epochs=2)
    assert learned.scores.shape == (graph.num_channels,)

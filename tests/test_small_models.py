"""Small nets with one unusual thing each, as people write them: pruned right, or frozen with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from torch import nn

Case = tuple[Callable[[], nn.Module], Any, int]

# Smaller ones: name -> (model, inputs, channels that can be pruned)
SMALL: dict[str, Case] = {
    "everything squeezed": (
        lambda: net(
            lambda self, x: self.b(F.adaptive_avg_pool2d(self.a(x), 1).squeeze()),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(8, 2),
        ),
        image(),
        8,
    ),
    "an output of one channel squeezed": (
        lambda: net(
            lambda self, x: self.b(self.a(x).mean((2, 3))).squeeze(-1), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 1)
        ),
        image(),
        8,
    ),
    "old weight norm": (
        lambda: nn.Sequential(
            nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
        ),
        tokens(),
        14,
    ),
    "old spectral norm": (
        lambda: nn.Sequential(
            nn.utils.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
        ),
        tokens(),
        14,
    ),
    "tied autoencoder": (
        lambda: net(lambda self, x: F.linear(F.linear(x, self.w).relu(), self.w.t()), w=parameter(8, 4)),
        tokens(),
        8,
    ),
    "weight sliced": (
        lambda: net(
            lambda self, x: self.o(F.conv2d(x, self.w[:6, :3], self.b[:6])),
            w=parameter(8, 4, 1, 1),
            b=parameter(8),
            o=nn.Conv2d(6, 2, 1),
        ),
        image(),
        11,
    ),
    "weight masked": (
        lambda: net(
            lambda self, x: self.o(F.conv2d(self.i(x), self.w * self.m, self.b).relu()),
            i=nn.Conv2d(3, 5, 1),
            w=parameter(8, 5, 3, 3),
            m=torch.ones(8, 5, 3, 3),
            b=parameter(8),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        13,
    ),
    "weight from view": (
        lambda: net(
            lambda self, x: self.o(F.conv2d(self.i(x), self.w.view(8, 5, 1, 1)).relu()),
            i=nn.Conv2d(3, 5, 1),
            w=parameter(8, 5),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        13,
    ),
    "dynamic conv": (
        lambda: net(
            lambda self, x: self.o(
                F.conv2d(
                    self.i(x).view(1, -1, 6, 6),
                    torch.einsum("bk,koihw->boihw", self.g(x.mean((2, 3))).softmax(-1), self.w).reshape(-1, 5, 3, 3),
                    padding=1,
                    groups=x.shape[0],
                ).view(x.shape[0], 8, 6, 6)
            ),
            i=nn.Conv2d(3, 5, 1),
            g=nn.Linear(3, 4),
            w=parameter(4, 8, 5, 3, 3),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        13,
    ),
    "window partition": (
        lambda: net(
            lambda self, x: self.o(
                self.a(x)
                .view(2, 8, 3, 2, 3, 2)
                .permute(0, 2, 4, 3, 5, 1)
                .reshape(-1, 4, 8)
                .softmax(1)
                .view(2, 3, 3, 2, 2, 8)
                .permute(0, 5, 1, 3, 2, 4)
                .reshape(2, 8, 6, 6)
            ),
            a=nn.Conv2d(3, 8, 1),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "anchors": (
        lambda: net(
            lambda self, x: self.c(self.a(x)).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 5),
            a=nn.Conv2d(3, 8, 1),
            c=nn.Conv2d(8, 15, 1),
        ),
        image(),
        8,
    ),
    "video": (
        lambda: net(
            lambda self, x: self.o(
                self.t(self.a(x.reshape(-1, 3, 6, 6)).mean((2, 3)).view(2, -1, 8).transpose(1, 2)).mean(-1)
            ),
            a=nn.Conv2d(3, 8, 1),
            t=nn.Conv1d(8, 6, 2),
            o=nn.Linear(6, 2),
        ),
        torch.randn(2, 4, 3, 6, 6),
        14,
    ),
    "pos embed interpolate": (
        lambda: net(
            lambda self, x: self.o(self.a(x) + F.interpolate(self.p, size=x.shape[2:], mode="bilinear")),
            a=nn.Conv2d(3, 8, 1),
            p=parameter(1, 8, 3, 3),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "rel pos bias": (
        lambda: net(
            lambda self, x: self.o(
                (
                    (
                        self.q(x).view(2, 5, 4, 2).transpose(1, 2) @ self.k(x).view(2, 5, 4, 2).permute(0, 2, 3, 1)
                        + self.t[self.i].permute(2, 0, 1)
                    ).softmax(-1)
                    @ self.v(x).view(2, 5, 4, 2).transpose(1, 2)
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            q=nn.Linear(4, 8),
            k=nn.Linear(4, 8),
            v=nn.Linear(4, 8),
            o=nn.Linear(8, 2),
            t=parameter(9, 4),
            i=torch.arange(25).view(5, 5) % 9,
        ),
        tokens(),
        4,
    ),
    "complex": (
        lambda: net(
            lambda self, x: self.o(torch.fft.irfft2(torch.fft.rfft2(self.a(x)) * torch.view_as_complex(self.w))),
            a=nn.Conv2d(3, 8, 1),
            w=parameter(8, 6, 4, 2),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "view complex of channels": (
        lambda: net(
            lambda self, x: self.o(
                torch.view_as_real(torch.view_as_complex(self.a(x).unflatten(-1, (4, 2))) * self.f).flatten(-2)
            ),
            a=nn.Linear(4, 8),
            f=torch.randn(4, dtype=torch.complex128),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        4,
    ),
    "topk mask routing": (
        lambda: net(
            lambda self, x: sum(
                (self.g(x).softmax(-1)[..., k : k + 1]) * e(x) for k, e in enumerate([self.e0, self.e1])
            ),
            g=nn.Linear(4, 2),
            e0=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
            e1=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        ),
        tokens(),
        16,
    ),
    "gram style": (
        lambda: net(
            lambda self, x: (f := self.a(x).flatten(2)) @ f.transpose(1, 2) / (f.shape[1] * f.shape[2]),
            a=nn.Conv2d(3, 8, 1),
        ),
        image(),
        0,
    ),
    "channel attention eca": (
        lambda: net(
            lambda self, x: self.o(
                (y := self.a(x)) * self.c(y.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)
            ),
            a=nn.Conv2d(3, 8, 1),
            c=nn.Conv1d(1, 1, 3, padding=1),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        0,
    ),
    "non local": (
        lambda: net(
            lambda self, x: self.o(
                (y := self.a(x))
                + self.w(
                    (self.t(y).flatten(2).mT @ self.p(y).flatten(2))
                    .softmax(-1)
                    .matmul(self.g(y).flatten(2).mT)
                    .mT.reshape(x.shape[0], 4, *x.shape[2:])
                )
            ),
            a=nn.Conv2d(3, 8, 1),
            t=nn.Conv2d(8, 4, 1),
            p=nn.Conv2d(8, 4, 1),
            g=nn.Conv2d(8, 4, 1),
            w=nn.Conv2d(4, 8, 1),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        16,
    ),
    "len and range": (
        lambda: net(lambda self, x: sum(self.a(x)[:, k] for k in range(x.shape[1])), a=nn.Linear(4, 8)),
        tokens(),
        0,
    ),
    "loop over channels": (
        lambda: net(
            lambda self, x: (
                torch.stack([y[:, k].sigmoid() for k in range(y.shape[1])], 1) if (y := self.a(x)) is not None else 0
            ),
            a=nn.Conv2d(3, 8, 1),
        ),
        image(),
        0,
    ),
    "parameter list": (
        lambda: net(
            lambda self, x: self.o(x @ self.p[0] + x @ self.p[1]),
            p=nn.ParameterList([parameter(4, 8), parameter(4, 8)]),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "bidirectional lstm with linear": (
        lambda: net(
            lambda self, x: self.o(self.l(self.a(x))[0][:, -1]),
            a=nn.Linear(4, 8),
            l=nn.LSTM(8, 6, bidirectional=True, batch_first=True),
            o=nn.Linear(12, 2),
        ),
        tokens(),
        14,
    ),
    "local attention unfold": (
        lambda: net(
            lambda self, x: self.o(
                (
                    F.unfold(self.a(x), 3, padding=1).view(x.shape[0], 8, 9, 36)
                    * self.w(x).flatten(2).softmax(1).unsqueeze(1)
                )
                .sum(2)
                .view(x.shape[0], 8, 6, 6)
            ),
            a=nn.Conv2d(3, 8, 1),
            w=nn.Conv2d(3, 9, 1),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "involution": (
        lambda: net(
            lambda self, x: self.o(
                (
                    self.w(self.r(x)).view(x.shape[0], 2, 9, 6, 6).unsqueeze(2)
                    * F.unfold(self.a(x), 3, padding=1).view(x.shape[0], 2, 4, 9, 6, 6)
                )
                .sum(3)
                .view(x.shape[0], 8, 6, 6)
            ),
            a=nn.Conv2d(3, 8, 1),
            r=nn.Conv2d(3, 4, 1),
            w=nn.Conv2d(4, 18, 1),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "maxout": (
        lambda: net(
            lambda self, x: self.o(self.a(x).view(*x.shape[:2], 4, 2).max(-1)[0]), a=nn.Linear(4, 8), o=nn.Linear(4, 2)
        ),
        tokens(),
        4,
    ),
    "crelu": (
        lambda: net(
            lambda self, x: self.o(torch.cat([self.a(x), -self.a(x)], 1).relu()),
            a=nn.Conv2d(3, 8, 1),
            o=nn.Conv2d(16, 2, 1),
        ),
        image(),
        8,
    ),
    "film": (
        lambda: net(
            lambda self, x, c: self.o(
                self.n(self.a(x)) * (1 + (g := self.f(c).chunk(2, 1))[0][..., None, None]) + g[1][..., None, None]
            ),
            a=nn.Conv2d(3, 8, 1),
            n=nn.InstanceNorm2d(8),
            f=nn.Linear(4, 16),
            o=nn.Conv2d(8, 2, 1),
        ),
        (image(), torch.randn(2, 4)),
        8,
    ),
    "adain": (
        lambda: net(
            lambda self, x, y: self.o(
                ((u := self.a(x)) - u.mean((2, 3), keepdim=True))
                / (u.std((2, 3), keepdim=True) + 1e-5)
                * (v := self.a(y)).std((2, 3), keepdim=True)
                + v.mean((2, 3), keepdim=True)
            ),
            a=nn.Conv2d(3, 8, 1),
            o=nn.Conv2d(8, 2, 1),
        ),
        (image(), image() * 2),
        8,
    ),
    "stylegan modulated conv": (
        lambda: net(
            lambda self, x, z: self.o(
                F.conv2d(
                    self.i(x) * self.s(z)[:, :, None, None],
                    self.w * ((self.w**2).sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt(),
                )
            ),
            i=nn.Conv2d(3, 5, 1),
            s=nn.Linear(4, 5),
            w=parameter(8, 5, 3, 3),
            o=nn.Conv2d(8, 2, 1),
        ),
        (image(), torch.randn(2, 4)),
        13,
    ),
    "linear attention": (
        lambda: net(
            lambda self, x: self.o(
                torch.einsum(
                    "bhnd,bhde->bhne",
                    (F.elu(self.q(x).view(*x.shape[:2], 2, 4).transpose(1, 2)) + 1),
                    torch.einsum(
                        "bhnd,bhne->bhde",
                        (F.elu(self.k(x).view(*x.shape[:2], 2, 4).transpose(1, 2)) + 1),
                        self.v(x).view(*x.shape[:2], 2, 4).transpose(1, 2),
                    ),
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            q=nn.Linear(4, 8),
            k=nn.Linear(4, 8),
            v=nn.Linear(4, 8),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        4,
    ),
    "xcit": (
        lambda: net(
            lambda self, x: self.o(
                (
                    (F.normalize(self.q(x).mT, dim=-1) @ F.normalize(self.k(x).mT, dim=-1).mT).softmax(-1)
                    @ self.v(x).mT
                ).mT
            ),
            q=nn.Linear(4, 8),
            k=nn.Linear(4, 8),
            v=nn.Linear(4, 8),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "layer scale": (
        lambda: net(
            lambda self, x: self.o((y := self.a(x)) + self.g * self.b(y)),
            a=nn.Linear(4, 8),
            b=nn.Linear(8, 8),
            g=parameter(8),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "conv1d over tokens": (
        lambda: net(
            lambda self, x: self.o(self.c(self.a(x).transpose(1, 2)).transpose(1, 2)),
            a=nn.Linear(4, 8),
            c=nn.Conv1d(8, 8, 3, padding=1, groups=8),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "where on channels index": (
        lambda: net(
            lambda self, x: self.o(torch.where(torch.arange(8)[None, :, None, None] < 4, (y := self.a(x)), -y)),
            a=nn.Conv2d(3, 8, 1),
            o=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "index_add": (
        lambda: net(
            lambda self, x: self.o(
                torch.zeros(2, 3, 8, dtype=x.dtype).index_add(1, torch.tensor([0, 1, 2, 0, 1]), self.a(x))
            ),
            a=nn.Linear(4, 8),
            o=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "boolean mask tokens": (
        lambda: net(lambda self, x, m: self.o(self.a(x) * m[..., None]), a=nn.Linear(4, 8), o=nn.Linear(8, 2)),
        (tokens(), torch.rand(2, 5) > 0.5),
        8,
    ),
    "tensor_split": (
        lambda: net(
            lambda self, x: (
                torch.cat([p * k for k, p in enumerate(torch.tensor_split(self.a(x), 3, -1), 1)], -1) @ self.w
            ),
            a=nn.Linear(4, 8),
            w=parameter(8, 2),
        ),
        tokens(),
        8,
    ),
    "meshgrid coords": (
        lambda: net(
            lambda self, x: self.o(
                torch.cat([self.a(x), torch.linspace(0, 1, 6, dtype=x.dtype).expand(x.shape[0], 1, 6, 6)], 1)
            ),
            a=nn.Conv2d(3, 8, 1),
            o=nn.Conv2d(9, 2, 1),
        ),
        image(),
        8,
    ),
    "reshape -1 channels": (
        lambda: net(
            lambda self, x: self.o(self.a(x).reshape(x.shape[0], -1, 4).mean(2)), a=nn.Linear(4, 8), o=nn.Linear(2, 2)
        ),
        torch.randn(3, 4),
        4,
    ),
}
# Their sizes are literals, or their batch is part of their computation.
ONE_BATCH = ("everything squeezed", "dynamic conv", "window partition", "rel pos bias", "index_add")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", list(SMALL))
def test_a_small_net_from_outside_is_pruned_right(name: str) -> None:
    make, inputs, channels = SMALL[name]
    torch.manual_seed(0)
    check_invariant(make(), inputs, channels, other_batch=name not in ONE_BATCH)

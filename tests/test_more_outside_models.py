"""More models as people write them: kinds that once failed, were pruned wrong or kept more than they must."""

# The names are those of the papers.
# ruff: noqa: E741, N806
from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, masks, plan_for
from torch import Tensor, nn

import fxprune

CASES: dict[str, tuple[Any, Any, int, bool]] = {}


def model(inputs: Any, channels: int, other_batch: bool = True) -> Any:
    """Register a model with its example inputs, what can be pruned of it, and whether any batch can go in."""

    def register(make: Any) -> Any:
        CASES[make.__name__] = (make, inputs, channels, other_batch)
        return make

    return register


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(length: int = 5, width: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))


def conv(a: int, b: int, k: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2, **options), nn.BatchNorm2d(b), nn.SiLU())


@dataclass
class Out:
    logits: Tensor
    hidden: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


@model(image(), 14)
class DataclassOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 6)
        self.b = conv(6, 8)
        self.h = nn.Linear(8, 3)

    def forward(self, x):
        f = self.b(self.a(x))
        return Out(self.h(f.mean((2, 3))), hidden=f.mean(1), extras={"n": f.amax((1, 2, 3))})


@model((tokens(), tokens(4, 8)), 44)
class EncoderAndDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, dropout=0.1)
        self.o = nn.Linear(8, 3)

    def forward(self, a, b):
        return self.o(self.t(a, b, tgt_mask=torch.ones(4, 4, dtype=torch.bool).triu(1)))


@model((tokens(), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()), 40, False)
class EncoderWithPaddingMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), 2, norm=nn.LayerNorm(8)
        )
        self.o = nn.Linear(8, 3)

    def forward(self, a, m):
        return self.o(self.t(a, src_key_padding_mask=m))


@model(image(), 11)
class WeightNormByHook(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.utils.weight_norm(nn.Conv2d(3, 6, 3))
        self.b = torch.nn.utils.weight_norm(nn.Conv2d(6, 5, 3))
        self.c = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


@model(tokens(), 11)
class GruCellInALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Linear(8, 6)
        self.c = nn.GRUCell(6, 5)
        self.h = nn.Linear(5, 3)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 5)
        outs = []
        for t in range(x.shape[1]):
            h = self.c(self.e(x[:, t]), h)
            outs.append(h)
        return self.h(torch.stack(outs, 1))


@model(tokens(), 6)
class LstmSpeltOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.ih = nn.Linear(8, 4 * 6)
        self.hh = nn.Linear(6, 4 * 6)
        self.h = nn.Linear(6, 3)

    def forward(self, x):
        h = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        c = torch.zeros_like(h)
        for t in range(x.shape[1]):
            i, f, g, o = (self.ih(x[:, t]) + self.hh(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.h(h)


@model(image(), 12)
class ShuffledChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 12)
        self.b = conv(12, 12, groups=3)
        self.c = conv(12, 12, groups=2)
        self.h = nn.Conv2d(12, 2, 1)
        self.sh = nn.ChannelShuffle(3)

    def forward(self, x):
        x = self.b(self.a(x))
        x = self.sh(x)
        x = self.c(x)
        b, c, h, w = x.size()
        x = x.reshape(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)
        return self.h(x)


@model(image(), 18)
class BestTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 8)
        self.score = nn.Conv2d(8, 1, 1)
        self.m = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 3))

    def forward(self, x):
        f = self.a(x)
        sc = self.score(f).flatten(1)
        v, i = torch.topk(sc, 6, dim=1)
        t = f.flatten(2).transpose(1, 2)
        t = torch.gather(t, 1, i.unsqueeze(-1).expand(-1, -1, t.size(-1)))
        return self.m(t * v.sigmoid()[..., None]).mean(1)


@model(image(), 18)
class SlicesWithSteps(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(4, 6)
        self.c = conv(4, 6)
        self.h = nn.Conv2d(6, 2, 1)
        self.f = conv(8, 8)

    def forward(self, x):
        x = self.f(self.a(x))
        return self.h(self.b(x[:, ::2]) + self.c(x[:, 1::2]))


@model(image(), 14)
class WrittenBySlices(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 6)
        self.h = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.a(x).clone()
        x[:, :, 0] = 0
        x[:, :, :, 1:3] *= 2
        x[:, 2:4] += 1
        x[:, :2] = x[:, :2].relu()
        return self.h(self.b(x))


@model(image(), 14)
class TemporalShift(nn.Module):
    """temporal shift"""

    def __init__(self):
        super().__init__()
        self.a = conv(3, 8)
        self.b = conv(8, 6)
        self.h = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.a(x)
        _n, c, _h, _w = x.size()
        fold = c // 4
        o = torch.zeros_like(x)
        o[:, :fold, :-1] = x[:, :fold, 1:]
        o[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        o[:, 2 * fold :] = x[:, 2 * fold :]
        return self.h(self.b(o))


@model(tokens(), 18)
class SelectiveScan(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(8, 24, bias=False)
        self.cv = nn.Conv1d(12, 12, 3, groups=12, padding=2)
        self.xp = nn.Linear(12, 2 + 2 * 4, bias=False)
        self.dt = nn.Linear(2, 12)
        self.A = nn.Parameter(torch.randn(12, 4))
        self.D = nn.Parameter(torch.ones(12))
        self.o = nn.Linear(12, 8, bias=False)

    def forward(self, u):
        b, l, _ = u.shape
        x, z = self.i(u).chunk(2, -1)
        x = F.silu(self.cv(x.transpose(1, 2))[..., :l].transpose(1, 2))
        dt, B, C = self.xp(x).split([2, 4, 4], -1)
        dt = F.softplus(self.dt(dt))
        A = -torch.exp(self.A.float().to(u.dtype))
        dA = torch.exp(dt.unsqueeze(-1) * A)
        dBx = dt.unsqueeze(-1) * B.unsqueeze(2) * x.unsqueeze(-1)
        h = torch.zeros(b, 12, 4, dtype=u.dtype)
        ys = []
        for t in range(l):
            h = dA[:, t] * h + dBx[:, t]
            ys.append((h * C[:, t].unsqueeze(1)).sum(-1))
        y = torch.stack(ys, 1) + x * self.D
        return self.o(y * F.silu(z))


@model(tokens(6, 8), 12)
class FourierMixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(8, 8)
        self.f = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.n = nn.LayerNorm(8)
        self.h = nn.Linear(8, 2)

    def forward(self, x):
        x = self.i(x)
        x = self.n(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return self.h(x + self.f(x))


@model(image(), 6)
class GlobalFilter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 6)
        self.w = nn.Parameter(torch.randn(8, 5, 6, 2))
        self.h = nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x).permute(0, 2, 3, 1)
        y = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        y = y * torch.view_as_complex(self.w)
        y = torch.fft.irfft2(y, s=(8, 8), dim=(1, 2), norm="ortho")
        return self.h(x + y)


@model(tokens(6, 8), 6)
class LongConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(8, 18)
        self.sh = nn.Conv1d(18, 18, 3, padding=2, groups=18)
        self.k = nn.Parameter(torch.randn(6, 6))
        self.o = nn.Linear(6, 8)

    def forward(self, x):
        L = x.shape[1]
        u = self.sh(self.i(x).transpose(1, 2))[..., :L]
        a, b, v = u.split(6, dim=1)
        z = a * v
        n = 2 * L
        y = torch.fft.irfft(torch.fft.rfft(z, n=n) * torch.fft.rfft(self.k, n=n), n=n)[..., :L]
        return self.o((y * b).transpose(1, 2))


@model(image(), 6)
class WrittenByMasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = conv(3, 6)
        self.m = conv(6, 6)
        self.h = nn.Conv2d(6, 2, 1)
        self.tok = nn.Parameter(torch.zeros(1, 6, 1, 1))

    def forward(self, x):
        x = self.s(x)
        y = self.m(x)
        y = torch.where(y > 0, y, self.tok)
        y = y.masked_fill(x < 0, 0.3)
        y = torch.where(x.mean(1, keepdim=True) > 0, y, torch.zeros_like(y))
        y[y > 3] = 0
        return self.h(y)


@model(image(), 6)
class OrderStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = conv(3, 6)
        self.h = nn.Linear(6, 2)

    def forward(self, x):
        x = self.s(x).flatten(2)
        v, _i = x.sort(-1, descending=True)
        return self.h(
            v[..., :4].mean(-1) + x.kthvalue(3, dim=-1)[0] + x.median(-1)[0] + x.quantile(0.5, dim=-1) + x.logsumexp(-1)
        )


@model(image(), 6)
class BlurredBetween(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 6)
        self.sc = nn.Parameter(torch.ones(1))
        self.register_buffer("k", torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1])[None] / 16)
        self.h = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.sc * F.relu(self.a(x)) ** 2
        k = self.k[None, None].repeat(x.shape[1], 1, 1, 1)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), k, stride=2, groups=x.shape[1])
        return self.h(x)


@model(torch.randn(2, 6, 20), 13, False)
class EdgeConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Conv1d(6, 5, 1)
        self.c = nn.Conv2d(10, 8, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.h = nn.Linear(16, 2)

    def forward(self, x):
        x = self.i(x)
        b, c, n = x.shape
        inner = -2 * x.transpose(2, 1) @ x
        xx = (x**2).sum(1, keepdim=True)
        d = -xx - inner - xx.transpose(2, 1)
        idx = d.topk(3, -1)[1]
        idx = (idx + torch.arange(b).view(-1, 1, 1) * n).view(-1)
        xt = x.transpose(2, 1).contiguous()
        f = xt.view(b * n, -1)[idx].view(b, n, 3, c)
        xr = xt.view(b, n, 1, c).repeat(1, 1, 3, 1)
        f = torch.cat((f - xr, xr), 3).permute(0, 3, 1, 2)
        y = F.leaky_relu(self.bn(self.c(f)), 0.2).max(-1)[0]
        return self.h(torch.cat([F.adaptive_max_pool1d(y, 1).view(b, -1), F.adaptive_avg_pool1d(y, 1).view(b, -1)], 1))


@model((torch.randn(5, 6), torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 0, 1]])), 8, False)
class MessagePassing(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Linear(6, 8)
        self.m = nn.Linear(16, 8)
        self.u = nn.GRUCell(8, 8)
        self.h = nn.Linear(8, 2)

    def forward(self, x, ei):
        h = self.e(x)
        src, dst = ei
        for _ in range(2):
            m = self.m(torch.cat([h[src], h[dst]], -1)).relu()
            a = torch.zeros_like(h).scatter_add_(0, dst.unsqueeze(-1).expand_as(m), m)
            h = self.u(a, h)
        return self.h(h.mean(0, keepdim=True))


@model((torch.randint(0, 9, (2, 6)), torch.randint(0, 9, (2, 4))), 18, False)
class SequenceToSequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 6)
        self.enc = nn.GRU(6, 5, bidirectional=True, batch_first=True)
        self.br = nn.Linear(10, 7)
        self.cell = nn.LSTMCell(6 + 10, 7)
        self.at = nn.Linear(7, 10, bias=False)
        self.o = nn.Linear(17, 9)

    def forward(self, a, b):
        m, h = self.enc(self.e(a))
        h = self.br(torch.cat([h[0], h[1]], -1)).tanh()
        c = torch.zeros_like(h)
        outs = []
        ctx = m.mean(1)
        for t in range(b.size(1)):
            h, c = self.cell(torch.cat([self.e(b[:, t]), ctx], -1), (h, c))
            al = torch.bmm(m, self.at(h).unsqueeze(2)).squeeze(2).softmax(1)
            ctx = torch.bmm(al.unsqueeze(1), m).squeeze(1)
            outs.append(self.o(torch.cat([h, ctx], -1)))
        return torch.stack(outs, 1)


@model(torch.randn(2, 6, 3, 8, 8), 5)
class ConvLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3 + 5, 20, 3, padding=1)
        self.h = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        b, t, _, H, W = x.shape
        h = torch.zeros(b, 5, H, W, dtype=x.dtype, device=x.device)
        c = h.clone()
        os = []
        for k in range(t):
            i, f, o, g = torch.split(self.c(torch.cat([x[:, k], h], 1)), 5, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            os.append(self.h(h))
        return torch.stack(os, 1)


@model(torch.randn(2, 4, 6), 16)
class RecurrenceWithLearnedState(nn.Module):
    def __init__(self):
        super().__init__()
        self.h0 = nn.Parameter(torch.zeros(1, 1, 5))
        self.e = nn.Linear(6, 7)
        self.r = nn.GRU(7, 5, batch_first=True)
        self.q = nn.RNN(5, 4, nonlinearity="relu", batch_first=True)
        self.h = nn.Linear(4, 3)

    def forward(self, x):
        y, _h = self.r(self.e(x), self.h0.expand(-1, x.size(0), -1).contiguous())
        z, _ = self.q(y, torch.zeros(1, x.size(0), 4, dtype=x.dtype))
        return self.h(z[:, -1])


@model(torch.randn(2, 5, 6, 3), 10)
class CRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(5, 4, 3, padding=1)
        self.r = nn.LSTM(4 * 3, 6, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.h = nn.Linear(12, 3)

    def forward(self, x):
        x = self.c(x)
        b, c, h, w = x.size()
        x = x.permute(0, 2, 1, 3).contiguous().view(b, h, c * w)
        self.r.flatten_parameters()
        x, _ = self.r(x)
        return self.h(x).log_softmax(-1)


@model(image(), 9, False)
class ConditionalConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = conv(3, 6)
        self.r = nn.Linear(6, 3)
        self.w = nn.Parameter(torch.randn(3, 5 * 6 * 9))
        self.h = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        x = self.s(x)
        b, c, h, w = x.shape
        r = self.r(x.mean((2, 3))).sigmoid()
        k = (r @ self.w).view(b * 5, c, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), k, padding=1, groups=b)
        return self.h(y.view(b, 5, y.size(2), y.size(3)))


@model(image(), 8)
class InvertibleFlow(nn.Module):
    """ActNorm + invertible 1x1 + affine coupling + squeeze"""

    def __init__(self):
        super().__init__()
        self.lo = nn.Parameter(torch.zeros(1, 12, 1, 1))
        self.w = nn.Parameter(torch.randn(12, 12))
        self.n = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)
        x = x + self.lo
        x = F.conv2d(x, self.w[:, :, None, None])
        a, z = x.chunk(2, 1)
        p = self.n(a)
        sh, sc = p[:, 0::2], torch.sigmoid(p[:, 1::2] + 2)
        z = (z + sh) * sc
        return torch.cat([a, z], 1), sc.log().flatten(1).sum(1) + torch.slogdet(self.w)[1]


@model(image(), 6)
class SharedHeads(nn.Module):
    """RetinaNet-like head over levels."""

    def __init__(self):
        super().__init__()
        self.a = conv(3, 6)
        self.b = nn.Conv2d(6, 6, 3, 2, 1)
        self.t = conv(6, 6)
        self.c = nn.Conv2d(6, 4, 3, padding=1)
        self.r = nn.Conv2d(6, 2, 3, padding=1)
        self.sc = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(2)])

    def forward(self, x):
        p = [self.a(x)]
        p.append(self.b(p[0]))
        cs = []
        rs = []
        for l, sc in zip(p, self.sc, strict=False):
            f = self.t(self.t(l))
            c = self.c(f)
            n, _, h, w = c.shape
            cs.append(c.view(n, 2, 2, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 2))
            rs.append((self.r(f) * sc).exp().flatten(2))
        return torch.cat(cs, 1), torch.cat(rs, 2)


@model(image(), 23)
class WeightedPyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.ModuleList([conv(3, 4), conv(4, 6, stride=2), conv(6, 8, stride=2)])
        self.l = nn.ModuleList([nn.Conv2d(c, 5, 1) for c in (4, 6, 8)])
        self.w = nn.Parameter(torch.ones(2, 2))
        self.f = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 5, 1)) for _ in range(2)]
        )
        self.h = nn.Conv2d(5, 2, 1)

    def forward(self, x):
        fs = []
        for c in self.c:
            x = c(x)
            fs.append(x)
        fs = [l(f) for l, f in zip(self.l, fs, strict=False)]
        w = F.relu(self.w)
        w = w / (w.sum(1, keepdim=True) + 1e-4)
        for i in range(1, -1, -1):
            fs[i] = self.f[i](
                (fs[i] * w[i, 0] + F.interpolate(fs[i + 1], size=fs[i].shape[-2:]) * w[i, 1]) * torch.sigmoid(fs[i])
            )
        return [self.h(f) for f in fs]


@model(image(), 2)
class SplitAttention(nn.Module):
    """ResNeSt"""

    def __init__(self):
        super().__init__()
        self.a = conv(3, 8)
        self.c = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.f1 = nn.Conv2d(8, 4, 1, groups=2)
        self.f2 = nn.Conv2d(4, 16, 1, groups=2)
        self.h = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.c(self.a(x)).relu()
        b, rc = x.shape[:2]
        sp = torch.split(x, rc // 2, 1)
        g = sum(sp)
        g = F.adaptive_avg_pool2d(g, 1)
        g = self.f2(self.f1(g).relu())
        g = g.view(b, 2, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1, 1, 1)
        at = torch.split(g, rc // 2, 1)
        return self.h(sum(a * q for a, q in zip(at, sp, strict=False)))


@model(tokens(6, 8), 26)
class GroupedQueries(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = nn.RMSNorm(8)
        self.q = nn.Linear(8, 8, bias=False)
        self.k = nn.Linear(8, 4, bias=False)
        self.v = nn.Linear(8, 4, bias=False)
        self.o = nn.Linear(8, 8, bias=False)
        self.g = nn.Linear(8, 12, bias=False)
        self.u = nn.Linear(8, 12, bias=False)
        self.d = nn.Linear(12, 8, bias=False)
        self.h = nn.Linear(8, 11, bias=False)
        self.register_buffer("f", 1 / 100 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, x):
        b, n, _ = x.shape
        y = self.n(x)
        q = self.q(y).view(b, n, 2, 4).transpose(1, 2)
        k = self.k(y).view(b, n, 1, 4).transpose(1, 2)
        v = self.v(y).view(b, n, 1, 4).transpose(1, 2)
        an = torch.outer(torch.arange(n, dtype=self.f.dtype), self.f)
        an = torch.cat([an, an], -1)

        def rot(t):
            return t * an.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * an.sin()

        q, k = rot(q), rot(k)
        k = k[:, :, None].expand(b, 1, 2, n, 4).reshape(b, 2, n, 4)
        v = v[:, :, None].expand(b, 1, 2, n, 4).reshape(b, 2, n, 4)
        x = x + self.o(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(b, n, -1)
        )
        return self.h(x + self.d(F.silu(self.g(y)) * self.u(y)))


@model(image(3, 8), 28)
class ShiftedWindows(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Conv2d(3, 8, 1)
        self.n = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.o = nn.Linear(8, 8)
        self.tb = nn.Parameter(torch.zeros(49, 2))
        c = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        r = (c[:, :, None] - c[:, None]).permute(1, 2, 0) + 3
        self.register_buffer("ri", (r[..., 0] * 7 + r[..., 1]))
        self.red = nn.Linear(32, 16, bias=False)
        self.n2 = nn.LayerNorm(32)
        self.h = nn.Linear(16, 2)

    def forward(self, x):
        x = self.e(x).permute(0, 2, 3, 1)
        y = torch.roll(self.n(x), (-2, -2), (1, 2))
        B, H, W, C = y.shape
        y = y.view(B, H // 4, 4, W // 4, 4, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, C)
        q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        at = (q * (C // 2) ** -0.5) @ k.transpose(-2, -1)
        at = at + self.tb[self.ri.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        y = (at.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, C)
        y = self.o(y)
        y = (
            y.view(-1, 4, 4, C)
            .view(B, H // 4, W // 4, 4, 4, -1)
            .permute(0, 1, 3, 2, 4, 5)
            .contiguous()
            .view(B, H, W, -1)
        )
        x = x + torch.roll(y, (2, 2), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.h(self.red(self.n2(x)).mean((1, 2)))


@model((torch.randn(2, 5), torch.randint(0, 4, (2, 3)), torch.rand(2, 3)), 21)
class Recommender(nn.Module):
    def __init__(self):
        super().__init__()
        self.em = nn.ModuleList([nn.Embedding(4, 6) for _ in range(3)])
        self.b = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))
        self.t = nn.Sequential(nn.Linear(6 + 6, 7), nn.ReLU(), nn.Linear(7, 1))
        self.register_buffer("li", torch.tensor([1, 2, 2, 3, 3, 3]), persistent=False)
        self.register_buffer("lj", torch.tensor([0, 0, 1, 0, 1, 2]), persistent=False)

    def forward(self, d, i, w):
        x = self.b(d)
        T = torch.stack([x] + [e(i[:, k]) * w[:, k : k + 1] for k, e in enumerate(self.em)], 1)
        Z = torch.bmm(T, T.transpose(1, 2))
        return self.t(torch.cat([x, Z[:, self.li, self.lj]], 1)).sigmoid()


@model(tokens(6, 8), 54)
class DecoderOfQueries(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Parameter(torch.randn(4, 8))
        self.p = nn.Linear(8, 8)
        self.dl = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True), 2)
        self.c = nn.Linear(8, 3)
        self.b = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x):
        h = self.dl(self.q.unsqueeze(0).repeat(x.shape[0], 1, 1), self.p(x))
        return {"logits": self.c(h), "boxes": self.b(h).sigmoid()}


@model((image(), torch.tensor([3, 7])), 42)
class DiffusionUNet(nn.Module):
    class Res(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.n1 = nn.GroupNorm(2, a)
            self.c1 = nn.Conv2d(a, b, 3, padding=1)
            self.t = nn.Linear(12, 2 * b)
            self.n2 = nn.GroupNorm(2, b)
            self.c2 = nn.Conv2d(b, b, 3, padding=1)
            self.s = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

        def forward(self, x, t):
            h = self.c1(F.silu(self.n1(x)))
            sc, sh = self.t(F.silu(t))[:, :, None, None].chunk(2, 1)
            h = self.n2(h) * (1 + sc) + sh
            return self.s(x) + self.c2(F.silu(h))

    def __init__(self):
        super().__init__()
        R = DiffusionUNet.Res
        self.te = nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 12))
        self.i = nn.Conv2d(3, 4, 3, padding=1)
        self.d1 = R(4, 8)
        self.dn = nn.Conv2d(8, 8, 3, 2, 1)
        self.d2 = R(8, 8)
        self.m = R(8, 8)
        self.u1 = R(16, 8)
        self.u2 = R(12, 4)
        self.o = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x, t):
        f = torch.exp(-math.log(10000) * torch.arange(4, dtype=x.dtype) / 4)
        a = t[:, None].to(x.dtype) * f[None]
        t = self.te(torch.cat([a.cos(), a.sin()], -1))
        x = self.i(x)
        a = self.d1(x, t)
        b = self.dn(a)
        b = self.m(self.d2(b, t), t)
        y = F.interpolate(b, scale_factor=2, mode="nearest")
        y = self.u1(torch.cat([y, a], 1), t)
        return self.o(self.u2(torch.cat([y, x], 1), t))


@model((image(6, 8), torch.randn(2, 4)), 18, False)
class ModulatedConvolution(nn.Module):
    """StyleGAN2 modulated conv with demodulation and grouped batch."""

    def __init__(self):
        super().__init__()
        self.pre = nn.Conv2d(6, 6, 1)
        self.w = nn.Parameter(torch.randn(1, 5, 6, 3, 3))
        self.map = nn.Sequential(nn.Linear(4, 7), nn.LeakyReLU(0.2), nn.Linear(7, 6))
        self.h = nn.Conv2d(5, 2, 1)

    def forward(self, x, z):
        x = self.pre(x)
        b, c, h, w = x.shape
        st = self.map(z).view(b, 1, c, 1, 1)
        wt = self.w * st
        d = torch.rsqrt(wt.pow(2).sum([2, 3, 4]) + 1e-8)
        wt = wt * d.view(b, 5, 1, 1, 1)
        wt = wt.view(b * 5, c, 3, 3)
        x = x.reshape(1, b * c, h, w)
        o = F.conv2d(x, wt, padding=1, groups=b)
        return self.h(o.view(b, 5, h, w))


@model(tokens(), 6)
class SplineLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(8, 6)
        self.c1 = nn.Parameter(torch.randn(6, 8, 5))
        self.c2 = nn.Parameter(torch.randn(3, 6, 5))
        self.register_buffer("g", torch.linspace(-1, 1, 5))

    def basis(self, x):
        return torch.exp(-(((x.unsqueeze(-1) - self.g) / 0.5) ** 2))

    def forward(self, x):
        x = F.silu(self.b(x)) + torch.einsum("bnik,oik->bno", self.basis(x), self.c1)
        B = self.basis(x)
        return F.linear(B.view(*B.shape[:-2], -1), self.c2.view(3, -1))


@model(image(), 11)
class AnchorsAndStridesOfEachLevel(nn.Module):
    """The grids of a detector, filled with the stride of their level: an entry of a tensor."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 6)
        self.down = conv(6, 5, stride=2)
        self.heads = nn.ModuleList([nn.Conv2d(6, 4, 1), nn.Conv2d(5, 4, 1)])
        self.stride = torch.tensor([8.0, 16.0])

    def forward(self, x):
        a = self.stem(x)
        levels = [head(f) for head, f in zip(self.heads, (a, self.down(a)), strict=True)]
        strides = [
            level.new_full((level.shape[2] * level.shape[3], 1), stride)
            for level, stride in zip(levels, self.stride, strict=True)
        ]
        return torch.cat([level.flatten(2) for level in levels], 2).mT * torch.cat(strides)


@model(torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(1)), 6)
class MaskOfASpectrogram(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 2, 3, padding=1)
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, x):
        z = torch.stft(x.flatten(0, 1), 16, 4, window=self.window, return_complex=True)
        m = self.b(self.a(torch.view_as_real(z).permute(0, 3, 1, 2)).relu()).permute(0, 2, 3, 1)
        z = z * torch.view_as_complex(m.contiguous())
        return torch.istft(z, 16, 4, window=self.window, length=x.shape[-1])


@model((tokens(), torch.tensor([5, 3])), 14, False)
class MaskMadeOfLengths(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.c = nn.Conv1d(6, 8, 3, padding=1)
        self.h = nn.Linear(8, 3)

    def forward(self, x, lengths):
        longest = int(torch.max(lengths).item())
        mask = torch.arange(longest, device=x.device).expand(x.shape[0], longest) < lengths[:, None]
        x = self.a(x[:, :longest]) * mask[..., None]
        return self.h(self.c(x.transpose(1, 2)).transpose(1, 2).relu())


@model(tokens(), 11)
class VariablesOfOldCode(nn.Module):
    """`Variable(x)` is `x.detach()` since torch 0.4; no tracer of torch sees it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 6)
        self.b = nn.Linear(6, 5)
        self.c = nn.Linear(5, 3)
        self.register_buffer("index", torch.tensor([1, 0, 3, 3, 5, 2]))

    def forward(self, x):
        x = torch.index_select(self.a(x), 2, torch.autograd.Variable(self.index))
        return self.c(torch.autograd.Variable(self.b(x)).relu())


@model(image(), 19)
class KernelsOfEachSample(nn.Module):
    """More channels than samples, so that a conv group is not taken for a channel."""

    def __init__(self):
        super().__init__()
        self.s = nn.Conv2d(3, 16, 1)
        self.r = nn.Linear(16, 3)
        self.w = nn.Parameter(torch.randn(3, 15 * 16 * 9))
        self.h = nn.Conv2d(15, 2, 1)

    def forward(self, x):
        x = self.s(x).relu()
        b, c, h, w = x.shape
        k = (self.r(x.mean((2, 3))).sigmoid() @ self.w).view(b * 15, c, 3, 3)
        y = F.conv2d(x.reshape(1, b * c, h, w), k, padding=1, groups=b)
        return self.h(y.view(b, 15, h, w))


@model(image(), 14)
class LayersOfFrequencies(nn.Module):
    """Weights are complex numbers, as in Fourier neural operators."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.w = nn.Parameter(torch.randn(6, 6, 3, 3, dtype=torch.cfloat))
        self.c = nn.Conv2d(6, 6, 1)
        self.p = nn.Conv2d(6, 8, 1)
        self.q = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.a(x)
        f = torch.fft.rfft2(x)
        low = torch.zeros_like(f)
        low[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", f[:, :, :3, :3], self.w)
        x = F.gelu(torch.fft.irfft2(low, s=x.shape[-2:]) + self.c(x))
        return self.q(F.gelu(self.p(x)))


@model(torch.arange(12).view(2, 6) % 9, 6)
class TableReadAfterTheLookup(nn.Module):
    """The rows of an embedding are numbers that the input gives, whatever else is made of its weight."""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 6)
        self.f = nn.Linear(6, 3)

    def forward(self, t):
        h = self.e(t)
        return self.f(h + (h @ self.e.weight.t()).relu() @ self.e.weight)


@model(image(), 11)
class CentralDifferences(nn.Module):
    """Kernel positions stay, though they are summed over elsewhere."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.f = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.c(x)
        return self.f((y - 0.7 * F.conv2d(x, self.c.weight.sum(2).sum(2)[:, :, None, None])).relu())


@model(tokens(), 20)
class SplineLayer(nn.Module):
    """Piecewise linear functions of each channel; what it divides by are differences of its grid."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.w = nn.Parameter(torch.randn(12, 8, 3))
        self.h = nn.Linear(12, 2)
        self.register_buffer("grid", torch.linspace(-1, 1, 5).expand(8, 5).clone())

    def forward(self, x):
        x = self.a(x).unsqueeze(-1)
        g = self.grid
        b = ((x >= g[:, :-1]) & (x < g[:, 1:])).to(x.dtype)
        rising = (x - g[:, :-2]) / (g[:, 1:-1] - g[:, :-2])
        falling = (g[:, 2:] - x) / (g[:, 2:] - g[:, 1:-1])
        b = rising * b[..., :-1] + falling * b[..., 1:]
        return self.h(F.linear(b.flatten(-2), self.w.flatten(1)))


class CausalMaskBuffers(nn.Module):
    """Each layer has a mask for the longest sequence and takes as much of it as the sequence is long."""

    def __init__(self):
        super().__init__()
        self.e = nn.Linear(8, 6)
        self.k = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.h = nn.Linear(6, 3)
        for i in range(2):
            self.register_buffer(f"mask{i}", torch.tril(torch.ones(16, 16)).view(1, 16, 16))

    def forward(self, x):
        x = self.e(x)
        for i, mask in enumerate((self.mask0, self.mask1)):
            T = x.size(1)
            k = self.k[i](x)
            x = x + ((x @ k.mT).masked_fill(mask[:, :T, :T] == 0, -torch.inf)).softmax(-1) @ k
        return self.h(x)


@model(image(), 12)
class CroppedInSpaceAndChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(6, 4, 1)
        self.d = nn.Conv2d(12, 4, 3)

    def forward(self, x):
        x = self.a(x)
        y = self.d(x)
        return y + self.b(x[:, :6, : y.shape[2], : y.shape[3]])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", list(CASES))
def test_another_model_from_outside_is_pruned_right(name: str) -> None:
    make, inputs, channels, other_batch = CASES[name]
    torch.manual_seed(0)
    graph = check_invariant(make(), inputs, channels, other_batch=other_batch)
    assert np.isfinite(fxprune.scores(graph)).all()


def test_masks_stay_as_long_as_the_longest_sequence() -> None:
    model, x = CausalMaskBuffers(), tokens()
    graph = check_invariant(model, x, 6)
    pruned = fxprune.rewrite(graph, plan_for(graph, next(masks(graph, 1))))
    assert fxprune.verify(model, pruned, tokens(11)) <= 1e-9


class FixedFilterBanks(nn.Module):
    """Spectra and bands of them by matrices that are buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("waves", torch.randn(18, 1, 16))
        self.register_buffer("bands", torch.rand(9, 9))
        self.a = nn.Conv1d(9, 12, 3)
        self.h = nn.Linear(12, 2)

    def forward(self, x):
        real, imaginary = F.conv1d(x[:, None], self.waves, stride=4).chunk(2, 1)
        x = torch.log(self.bands @ (real**2 + imaginary**2) + 1e-6)
        return self.h(self.a(x).mean(-1))


def test_channels_that_live_on_buffers_alone_get_gates_too() -> None:
    model, x = FixedFilterBanks(), torch.randn(2, 80, generator=torch.Generator().manual_seed(1))
    graph = check_invariant(model.eval(), x, 30)
    gated = fxprune.insert_gates(graph)
    assert torch.equal(gated(x.double()), model(x.double()))
    learned = fxprune.learn_gates(graph, [x.double()], flops=0.5, epochs=2)
    assert learned.scores.shape == (graph.num_channels,)


class ConvOfBoundedNorm(nn.Conv2d):
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


class LinearOfBoundedNorm(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.copy_(self.weight.renorm(2, 0, 0.5))
        return super().forward(x)


def test_weights_that_forward_bounds_are_bounded_in_the_graph_and_left_alone_in_the_model() -> None:
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 8, 3), nn.ReLU(), ConvOfBoundedNorm(8, 12, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*features, LinearOfBoundedNorm(12 * 16, 10), nn.ReLU(), nn.Linear(10, 2)).eval()
    with torch.no_grad():
        model[2].weight.mul_(9)
        model[5].weight.mul_(9)
    state = copy.deepcopy(model.state_dict())
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(fxprune.trace(model, x)(x), copy.deepcopy(model)(x), rtol=0, atol=0)
    for settings in ({"compensate": False}, {"data": [x]}):
        pruned = fxprune.prune(model, 0.5, example_inputs=x, **settings)
        assert fxprune.verify(model, pruned, x) <= 1e-9
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class MergedInEval(nn.Module):
    """Two convolutions beside a third in training; in eval one, whose weights are theirs multiplied and added."""

    def __init__(self, a, b):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(a, 2 * a, 1), nn.Conv2d(2 * a, b, 3)
        self.on_device_of, self.merged = nn.Conv2d(a, b, 1), nn.Conv2d(a, b, 3, padding=1)

    def merge(self):
        first, second = self.wide.weight.data.clone(), self.narrow.weight.data.clone()
        weight = F.conv2d(first.permute(1, 0, 2, 3), second, padding=2).flip(2, 3).permute(1, 0, 2, 3)
        bias = (second * self.wide.bias.data.reshape(1, -1, 1, 1)).sum((1, 2, 3)) + self.narrow.bias.data
        self.merged.weight.data = (weight + F.pad(self.on_device_of.weight.data, [1] * 4)).contiguous()
        self.merged.bias.data = bias + self.on_device_of.bias.data

    def forward(self, x):
        if self.training:
            return self.narrow(self.wide(F.pad(x, [1] * 4))) + self.on_device_of(x)
        self.merge()
        return self.merged(x)


class Upscaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.rand(1, 3, 1, 1)
        self.layers = nn.Sequential(MergedInEval(3, 8), nn.SiLU(), MergedInEval(8, 12), nn.SiLU(), MergedInEval(12, 12))

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return F.pixel_shuffle(self.layers(x - self.mean), 2)


class MaskedConv(nn.Conv2d):
    """Sees only what is above and to the left, as PixelCNN's."""

    def __init__(self, a, b, k):
        super().__init__(a, b, k, padding=k // 2)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, k // 2, k // 2 :] = 0
        self.mask[:, :, k // 2 + 1 :] = 0

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class RepeatsBelow(nn.Module):
    """A weight that forward changes to one that is not zero where channels were removed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 6)
        self.h = nn.Linear(6, 2)

    def forward(self, x):
        self.b.weight.data.mul_(1.0).add_(0.1)
        return self.h(self.b(self.a(x).sigmoid()))


@pytest.mark.parametrize(
    ("model", "x", "channels"),
    [
        (
            nn.Sequential(MaskedConv(1, 8, 5), nn.ReLU(), MaskedConv(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
            image(1),
            14,
        ),
        (RepeatsBelow(), torch.randn(3, 4), 6),
    ],
    ids=["masked", "not masked"],
)
def test_zeros_of_weights_that_are_masked_in_place_stay_zeros(model, x, channels) -> None:
    # Each forward changes the weights, so that copies are compared that have run once.
    small = fxprune.prune(model.eval(), 0.6, example_inputs=x, compensate=False, method="l2")
    assert fxprune.verify(model, small, x) <= 1e-9
    graph = fxprune.analyze(fxprune.trace(model, x))
    assert sum(map(len, graph.groups)) == channels


def test_layers_that_are_merged_in_eval_are_pruned_as_fvcore_counts_them_and_trained_in_their_own_class() -> None:
    torch.manual_seed(0)
    model, x = Upscaler().eval(), image()
    state = copy.deepcopy(model.state_dict())
    with pytest.warns(
        fxprune.FxpruneWarning, match=r"for `layers\.0`, `layers\.2`, `layers\.4`: other code runs there"
    ):
        small = fxprune.prune(model, 0.5, example_inputs=x, compensate=False, method="l2")
    plan, before = fxprune.plan_of(small), fxprune.count_flops(model, x)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert fxprune.count_flops(small, x) == plan.flops <= 0.5 * before
    assert fxprune.verify(model, small, x) <= 1e-9
    # The colours are the model's input.
    assert small.get_buffer("_tensor_constant0").shape == (1, 3, 1, 1)
    own = fxprune.restore_class(model, small)
    assert (own.training, own(x).shape) == (False, small(x).shape)
    torch.testing.assert_close(own.train()(x), small(x), rtol=0, atol=1e-5)


class ScaledByKeptTables(nn.Module):
    """Tensors that are neither parameters nor buffers meet the channels."""

    def __init__(self):
        super().__init__()
        self.scale, self.shifts = torch.rand(8, 1, 1), [torch.rand(8)]
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(self.a(x) * self.scale + self.shifts[0][:, None, None])


def test_tables_that_a_model_keeps_are_cut_in_its_own_class_too() -> None:
    model, x = ScaledByKeptTables().eval(), image()
    small = fxprune.prune(model, 0.6, example_inputs=x, compensate=False, method="l2")
    own = fxprune.restore_class(model, small)
    assert len(own.scale) == len(own.shifts[0]) == small.get_parameter("a.weight").shape[0] < 8
    assert (len(model.scale), len(model.shifts[0])) == (8, 8)
    assert torch.equal(own(x), small(x))

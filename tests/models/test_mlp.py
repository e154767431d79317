"""Models of linear layers: mixers, gated units, experts, state spaces, splines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Cases
from invariant import parameter, tokens
from torch import nn

CASES = Cases()


@CASES.model(
    tokens(6, 8),
    15,
    t1=nn.Linear(6, 5),
    t2=nn.Linear(5, 6),
    c1=nn.Linear(8, 10),
    c2=nn.Linear(10, 8),
    n1=nn.LayerNorm(8),
    n2=nn.LayerNorm(8),
    head=nn.Linear(8, 2),
)
def mlp_mixer(self, x):
    x = x + self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
    x = x + self.c2(F.gelu(self.c1(self.n2(x))))
    return self.head(x.mean(dim=1))


@CASES.model(
    tokens(width=8), 11, up=nn.Linear(8, 12), down=nn.Linear(6, 8), fused=nn.Linear(8, 10), out=nn.Linear(5, 8)
)
def gated_linear_units(self, x):
    value, gate = self.up(x).chunk(2, dim=-1)
    x = x + self.down(value * F.silu(gate))
    return x + self.out(F.glu(self.fused(x), dim=-1))


@CASES.model(tokens(), 4, a=nn.Linear(4, 8), o=nn.Linear(4, 2))
def maxout(self, x):
    return self.o(self.a(x).view(*x.shape[:2], 4, 2).max(-1)[0])


@CASES.model(
    tokens(width=8),
    18,
    gate=nn.Linear(8, 3),
    experts=nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3)),
)
def mixture_of_the_best_experts(self, x):
    weights, index = self.gate(x).softmax(-1).topk(2, dim=-1)
    outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
    chosen = torch.gather(outputs, -2, index[..., None].expand(-1, -1, -1, x.shape[-1]))
    return (chosen * weights.unsqueeze(-1)).sum(-2)


@CASES.model(
    tokens(),
    16,
    gate=nn.Linear(4, 2),
    experts=nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)),
)
def mixture_of_all_experts(self, x):
    return sum((self.gate(x).softmax(-1)[..., k : k + 1]) * expert(x) for k, expert in enumerate(self.experts))


@CASES.model(
    tokens(width=8),
    16,
    start=nn.Linear(8, 6),
    block=nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)),
    end=nn.Linear(6, 2),
)
def one_block_called_three_times(self, x):
    x = self.start(x)
    for _ in range(3):
        x = x + self.block(x)
    return self.end(x)


@CASES.model(tokens(), 8, a=nn.Linear(4, 8), b=nn.Linear(8, 8), g=parameter(8), o=nn.Linear(8, 2))
def layer_scale(self, x):
    y = self.a(x)
    return self.o(y + self.g * self.b(y))


@CASES.model(tokens(), 8, a=nn.Linear(4, 8), c=nn.Conv1d(8, 8, 3, padding=1, groups=8), o=nn.Linear(8, 2))
def convolution_over_tokens(self, x):
    return self.o(self.c(self.a(x).transpose(1, 2)).transpose(1, 2))


@CASES.model(
    tokens(width=8),
    18,
    i=nn.Linear(8, 24, bias=False),
    conv=nn.Conv1d(12, 12, 3, groups=12, padding=2),
    project=nn.Linear(12, 2 + 2 * 4, bias=False),
    step=nn.Linear(2, 12),
    a=nn.Parameter(torch.randn(12, 4)),
    d=nn.Parameter(torch.ones(12)),
    o=nn.Linear(12, 8, bias=False),
)
def selective_scan(self, u):
    """Mamba's."""
    batch, length, _ = u.shape
    x, z = self.i(u).chunk(2, -1)
    x = F.silu(self.conv(x.transpose(1, 2))[..., :length].transpose(1, 2))
    step, b, c = self.project(x).split([2, 4, 4], -1)
    step = F.softplus(self.step(step))
    decay = torch.exp(step.unsqueeze(-1) * -torch.exp(self.a.float().to(u.dtype)))
    driven = step.unsqueeze(-1) * b.unsqueeze(2) * x.unsqueeze(-1)
    h = torch.zeros(batch, 12, 4, dtype=u.dtype)
    ys = []
    for t in range(length):
        h = decay[:, t] * h + driven[:, t]
        ys.append((h * c[:, t].unsqueeze(1)).sum(-1))
    y = torch.stack(ys, 1) + x * self.d
    return self.o(y * F.silu(z))


def basis(self, x):
    return torch.exp(-(((x.unsqueeze(-1) - self.grid) / 0.5) ** 2))


@CASES.model(
    tokens(width=8),
    6,
    b=nn.Linear(8, 6),
    c1=nn.Parameter(torch.randn(6, 8, 5)),
    c2=nn.Parameter(torch.randn(3, 6, 5)),
    grid=torch.linspace(-1, 1, 5),
)
def radial_basis_functions(self, x):
    x = F.silu(self.b(x)) + torch.einsum("bnik,oik->bno", basis(self, x), self.c1)
    values = basis(self, x)
    return F.linear(values.view(*values.shape[:-2], -1), self.c2.view(3, -1))


@CASES.model(
    tokens(width=8),
    20,
    a=nn.Linear(8, 8),
    w=nn.Parameter(torch.randn(12, 8, 3)),
    head=nn.Linear(12, 2),
    grid=torch.linspace(-1, 1, 5).expand(8, 5).clone(),
)
def piecewise_linear_functions(self, x):
    """Differences of the grid are divisors."""
    x = self.a(x).unsqueeze(-1)
    g = self.grid
    b = ((x >= g[:, :-1]) & (x < g[:, 1:])).to(x.dtype)
    rising = (x - g[:, :-2]) / (g[:, 1:-1] - g[:, :-2])
    falling = (g[:, 2:] - x) / (g[:, 2:] - g[:, 1:-1])
    b = rising * b[..., :-1] + falling * b[..., 1:]
    return self.head(F.linear(b.flatten(-2), self.w.flatten(1)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_of_linear_layers_is_pruned_correctly(case):
    case.check()

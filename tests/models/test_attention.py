"""Transformers and other models with attention, as people write them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Cases, conv, linears
from invariant import NotSaved, check_invariant, image, masks, net, parameter, plan_for, tokens
from torch import nn

import fxprune
from fxprune.verification import TOLERANCE

CASES = Cases()


@CASES.model(
    tokens(width=8),
    24,
    attention=nn.MultiheadAttention(8, 2, batch_first=True),
    mlp=nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
)
def multihead_attention_inside(self, x):
    y, _ = self.attention(x, x, x, need_weights=False)
    return x + self.mlp(x + y)


@CASES.model(
    tokens(width=8),
    32,
    encoder=nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    ),
    head=nn.Linear(8, 3),
)
def transformer_encoder(self, x):
    return self.head(self.encoder(x).mean(1))


@CASES.model(
    (tokens(width=8), tokens(4, 8)), 44, transformer=nn.Transformer(8, 2, 1, 1, 16, batch_first=True), o=nn.Linear(8, 3)
)
def encoder_and_decoder(self, a, b):
    return self.o(self.transformer(a, b, tgt_mask=torch.ones(4, 4, dtype=torch.bool).triu(1)))


@CASES.model(
    (tokens(width=8), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()),
    40,
    other_batch=False,
    encoder=nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), 2, norm=nn.LayerNorm(8)
    ),
    o=nn.Linear(8, 3),
)
def encoder_with_a_padding_mask(self, a, padding):
    return self.o(self.encoder(a, src_key_padding_mask=padding))


@CASES.model(
    tokens(6, 8),
    54,
    queries=nn.Parameter(torch.randn(4, 8)),
    project=nn.Linear(8, 8),
    decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True), 2),
    classes=nn.Linear(8, 3),
    boxes=nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)),
)
def decoder_of_queries(self, x):
    h = self.decoder(self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1), self.project(x))
    return {"logits": self.classes(h), "boxes": self.boxes(h).sigmoid()}


@CASES.model(tokens(width=8), 4, qkv=nn.Linear(8, 3 * 2 * 4, bias=False), out=parameter(2, 4, 8))
def einsum_attention(self, x):
    b, n, _ = x.shape
    q, k, v = self.qkv(x).view(b, n, 3, 2, -1).unbind(2)
    weights = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    y = torch.einsum("bhij,bjhd->bihd", weights.softmax(-1), v)
    return x + torch.einsum("bihd,hdc->bic", y, self.out)


ANGLES = torch.outer(torch.arange(6.0), 1 / 100 ** (torch.arange(0, 4, 2) / 4))


def rotate(self, x):
    n = x.shape[-2]
    half = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)
    return x * self.cos[:n] + half * self.sin[:n]


@CASES.model(
    tokens(6, 8),
    6,
    **linears("q k v o", 8, 8, bias=False),
    cos=NotSaved(torch.cat([ANGLES, ANGLES], -1).cos()),
    sin=NotSaved(torch.cat([ANGLES, ANGLES], -1).sin()),
)
def rotary_attention(self, x):
    b, n, c = x.shape
    q, k, v = (m(x).view(b, n, 2, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(rotate(self, q), rotate(self, k), v, is_causal=True)
    return x + self.o(y.transpose(1, 2).reshape(b, n, c))


@CASES.model(
    tokens(6, 8),
    26,
    norm=nn.RMSNorm(8),
    **linears("q o", 8, 8, bias=False),
    **linears("k v", 8, 4, bias=False),
    **linears("gate up", 8, 12, bias=False),
    down=nn.Linear(12, 8, bias=False),
    head=nn.Linear(8, 11, bias=False),
    frequencies=NotSaved(1 / 100 ** (torch.arange(0, 4, 2) / 4)),
)
def grouped_queries(self, x):
    b, n, _ = x.shape
    y = self.norm(x)
    q = self.q(y).view(b, n, 2, 4).transpose(1, 2)
    k = self.k(y).view(b, n, 1, 4).transpose(1, 2)
    v = self.v(y).view(b, n, 1, 4).transpose(1, 2)
    angles = torch.outer(torch.arange(n, dtype=self.frequencies.dtype), self.frequencies)
    angles = torch.cat([angles, angles], -1)

    def rotated(t):
        return t * angles.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angles.sin()

    q, k = rotated(q), rotated(k)
    k = k[:, :, None].expand(b, 1, 2, n, 4).reshape(b, 2, n, 4)
    v = v[:, :, None].expand(b, 1, 2, n, 4).reshape(b, 2, n, 4)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.o(attended.transpose(1, 2).contiguous().view(b, n, -1))
    return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))


@CASES.model(tokens(width=8), 10, **linears("q k", 8, 6), v=nn.Linear(8, 4), o=nn.Linear(4, 8))
def scale_from_the_shape(self, x):
    q, k, v = self.q(x), self.k(x), self.v(x)
    scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
    return self.o((scores.softmax(-1) @ v) / v.shape[-1])


@CASES.model(
    (tokens(width=8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])), 4, qkv=nn.Linear(8, 24), o=nn.Linear(8, 8)
)
def masked_attention(self, x, lengths):
    b, n, c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    scores = (q * (c // 2) ** -0.5) @ k.transpose(-2, -1)
    scores = scores.masked_fill(lengths[:, None, None, :] == 0, float("-inf"))
    x = self.o((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))
    return x * lengths.unsqueeze(-1)


@CASES.made((torch.randint(0, 9, (2, 5)),), 20)
class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(9, 8), nn.Embedding(16, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


def rms(self, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain


@CASES.model(
    tokens(width=8),
    20,
    start=nn.Linear(8, 8),
    gain=nn.Parameter(torch.ones(8)),
    **linears("w1 w3", 8, 12),
    w2=nn.Linear(12, 8),
    norm=nn.RMSNorm(8),
    end=nn.Linear(8, 3),
)
def rms_normed_transformer(self, x):
    x = self.start(x)
    y = rms(self, x)
    x = x + self.w2(F.silu(self.w1(y)) * self.w3(y))
    return self.end(self.norm(x))


@CASES.model(
    image(3, 8),
    18,
    stem=conv(3, 8),
    score=nn.Conv2d(8, 1, 1),
    mlp=nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 3)),
)
def best_tokens(self, x):
    x = self.stem(x)
    values, index = torch.topk(self.score(x).flatten(1), 6, dim=1)
    t = x.flatten(2).transpose(1, 2)
    t = torch.gather(t, 1, index.unsqueeze(-1).expand(-1, -1, t.size(-1)))
    return self.mlp(t * values.sigmoid()[..., None]).mean(1)


def relative_positions():
    c = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
    r = (c[:, :, None] - c[:, None]).permute(1, 2, 0) + 3
    return r[..., 0] * 7 + r[..., 1]


@CASES.model(
    image(3, 8),
    28,
    embed=nn.Conv2d(3, 8, 1),
    norm=nn.LayerNorm(8),
    qkv=nn.Linear(8, 24),
    o=nn.Linear(8, 8),
    table=parameter(49, 2),
    index=relative_positions(),
    reduce=nn.Linear(32, 16, bias=False),
    norm2=nn.LayerNorm(32),
    head=nn.Linear(16, 2),
)
def shifted_windows(self, x):
    x = self.embed(x).permute(0, 2, 3, 1)
    y = torch.roll(self.norm(x), (-2, -2), (1, 2))
    b, h, w, c = y.shape
    y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
    q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    scores = (q * (c // 2) ** -0.5) @ k.transpose(-2, -1)
    scores = scores + self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
    y = self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c))
    y = y.view(-1, 4, 4, c).view(b, h // 4, w // 4, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)
    x = x + torch.roll(y, (2, 2), (1, 2))
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return self.head(self.reduce(self.norm2(x)).mean((1, 2)))


@CASES.model(image(), 8, other_batch=False, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 2, 1))
def window_partition(self, x):
    x = self.a(x).view(2, 8, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 8).softmax(1)
    return self.o(x.view(2, 3, 3, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(2, 8, 6, 6))


@CASES.model(
    tokens(),
    4,
    other_batch=False,
    **linears("q k v", 4, 8),
    o=nn.Linear(8, 2),
    table=parameter(9, 4),
    index=torch.arange(25).view(5, 5) % 9,
)
def relative_position_bias(self, x):
    q, k = self.q(x).view(2, 5, 4, 2).transpose(1, 2), self.k(x).view(2, 5, 4, 2).permute(0, 2, 3, 1)
    weights = (q @ k + self.table[self.index].permute(2, 0, 1)).softmax(-1)
    return self.o((weights @ self.v(x).view(2, 5, 4, 2).transpose(1, 2)).transpose(1, 2).flatten(2))


@CASES.model(
    image(),
    16,
    a=nn.Conv2d(3, 8, 1),
    theta=nn.Conv2d(8, 4, 1),
    phi=nn.Conv2d(8, 4, 1),
    g=nn.Conv2d(8, 4, 1),
    w=nn.Conv2d(4, 8, 1),
    o=nn.Conv2d(8, 2, 1),
)
def non_local_block(self, x):
    y = self.a(x)
    weights = (self.theta(y).flatten(2).mT @ self.phi(y).flatten(2)).softmax(-1)
    return self.o(y + self.w(weights.matmul(self.g(y).flatten(2).mT).mT.reshape(x.shape[0], 4, *x.shape[2:])))


@CASES.model(tokens(), 4, **linears("q k v", 4, 8), o=nn.Linear(8, 2))
def linear_attention(self, x):
    q, k, v = (m(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
    context = torch.einsum("bhnd,bhne->bhde", F.elu(k) + 1, v)
    return self.o(torch.einsum("bhnd,bhde->bhne", F.elu(q) + 1, context).transpose(1, 2).flatten(2))


@CASES.model(tokens(), 8, **linears("q k v", 4, 8), o=nn.Linear(8, 2))
def attention_between_channels(self, x):
    weights = (F.normalize(self.q(x).mT, dim=-1) @ F.normalize(self.k(x).mT, dim=-1).mT).softmax(-1)
    return self.o((weights @ self.v(x).mT).mT)


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), w=nn.Conv2d(3, 9, 1), o=nn.Conv2d(8, 2, 1))
def local_attention_by_unfold(self, x):
    patches = F.unfold(self.a(x), 3, padding=1).view(x.shape[0], 8, 9, 36)
    return self.o((patches * self.w(x).flatten(2).softmax(1).unsqueeze(1)).sum(2).view(x.shape[0], 8, 6, 6))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_with_attention_is_pruned_correctly(case):
    case.check()


def causal_masks(self, x):
    """Each layer has a mask for the longest sequence and uses as much of it as the sequence is long."""
    x = self.embed(x)
    for layer, mask in zip(self.layers, (self.mask0, self.mask1), strict=True):
        n, k = x.size(1), layer(x)
        x = x + ((x @ k.mT).masked_fill(mask[:, :n, :n] == 0, -torch.inf)).softmax(-1) @ k
    return self.head(x)


def test_masks_stay_as_long_as_the_longest_sequence():
    model = net(
        causal_masks,
        embed=nn.Linear(8, 6),
        layers=nn.ModuleList(nn.Linear(6, 6) for _ in range(2)),
        head=nn.Linear(6, 3),
        mask0=torch.tril(torch.ones(16, 16)).view(1, 16, 16),
        mask1=torch.tril(torch.ones(16, 16)).view(1, 16, 16),
    )
    graph = check_invariant(model, tokens(width=8), 6)
    pruned = fxprune.rewrite(graph, plan_for(graph, next(masks(graph, 1))))
    assert fxprune.verify(model, pruned, tokens(11, 8)) <= TOLERANCE

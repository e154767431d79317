"""Attention: the fused op, its scale, masks, heads; torch's own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, net, parameter, tokens
from layer_nets import invariant_test
from torch import Tensor, nn


def attend(**options: Any) -> Any:
    """Two heads by the fused op; q, k and v are layers of their own."""

    def forward(self: Any, x: Tensor, *mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, 2, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, *mask, **options)
        return self.o(y.transpose(1, 2).reshape(b, n, -1))

    return forward


def layers(value: int = 8) -> dict[str, nn.Module]:
    return {"q": nn.Linear(4, 8), "k": nn.Linear(4, 8), "v": nn.Linear(4, value), "o": nn.Linear(value, 2)}


def grouped_query(self: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q = self.q(x).view(b, n, 4, 3).transpose(1, 2)
    k, v = self.kv(x).view(b, n, 2, 2, 3).permute(2, 0, 3, 1, 4)
    return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def over_the_width(self: Any, x: Tensor) -> Tensor:
    """Attention between the features of a head, as in XCiT: they are normalised over, so the width stays."""
    b, n, _ = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, 4, 6).permute(2, 0, 3, 4, 1)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1)
    return self.o((weights @ v).permute(0, 3, 1, 2).reshape(b, n, -1))


NETS = {
    "heads go as wholes where their width has to stay": (
        lambda: net(over_the_width, qkv=nn.Linear(4, 72), o=nn.Linear(24, 2), temperature=parameter(4, 1, 1)),
        tokens(),
        4,
    ),
    "one head whose width shrinks keeps its scale": (
        lambda: net(
            lambda self, x: F.scaled_dot_product_attention(self.q(x), self.k(x), x),
            q=nn.Linear(4, 8),
            k=nn.Linear(4, 8),
        ),
        tokens(),
        8,
    ),
    "a scale that is given": (
        lambda: net(
            lambda self, x: F.scaled_dot_product_attention(self.q(x), self.k(x), x, scale=0.3),
            q=nn.Linear(4, 8),
            k=nn.Linear(4, 8),
        ),
        tokens(),
        8,
    ),
    "two heads": (lambda: net(attend(), **layers()), tokens(), 8),
    "two wide heads of values": (lambda: net(attend(), **layers(12)), tokens(), 10),
    "causal": (lambda: net(attend(is_causal=True), **layers()), tokens(), 8),
    "with a mask": (lambda: net(attend(), **layers()), (tokens(), torch.rand(2, 1, 5, 5) > 0.3), 8),
    "many heads go as wholes": (
        lambda: net(
            lambda self, x: self.o(
                F.scaled_dot_product_attention(
                    *(f(x).view(2, 5, 6, 2).transpose(1, 2) for f in (self.q, self.k, self.v))
                )
                .transpose(1, 2)
                .flatten(2)
            ),
            q=nn.Linear(4, 12),
            k=nn.Linear(4, 12),
            v=nn.Linear(4, 12),
            o=nn.Linear(12, 2),
        ),
        tokens(),
        6,
    ),
    "queries in groups": (
        lambda: net(grouped_query, q=nn.Linear(4, 12), kv=nn.Linear(4, 12), o=nn.Linear(12, 2)),
        tokens(),
        None,
    ),
    "tokens that a layer makes stay": (
        lambda: net(lambda self, x: F.scaled_dot_product_attention(x, (y := self.t(x.mT).mT), y), t=nn.Linear(5, 7)),
        tokens(),
        0,
    ),
}


# Its sizes are literals.
test_attention_keeps_the_invariant = invariant_test(NETS, one_batch=["many heads go as wholes"])


MODULES = {
    "batch first": {"batch_first": True},
    "tokens first": {},
    "without bias": {"bias": False},
    "another width of keys and values": {"kdim": 4, "vdim": 4},
    "with a bias of keys and values": {"add_bias_kv": True},
}


@pytest.mark.parametrize("name", MODULES)
def test_the_attention_module_is_opened_and_loses_head_channels(name: str) -> None:
    model = net(
        lambda self, x: self.out(self.m(y := self.a(x), *([x, x] if name.startswith("another") else [y, y]))[0]),
        a=nn.Linear(4, 8), m=nn.MultiheadAttention(8, 2, **MODULES[name]), out=nn.Linear(8, 2),
    )  # fmt: skip
    check_invariant(model, tokens(), other_batch="batch_first" in MODULES[name])


def test_a_masked_transformer_loses_head_and_hidden_channels() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    model = net(
        lambda self, x, padding: self.out(self.layers(self.a(x), src_key_padding_mask=padding)),
        a=nn.Linear(4, 8), layers=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), out=nn.Linear(8, 2),
    )  # fmt: skip
    check_invariant(model, (tokens(), padding), 4 + 12 + 8)


def test_a_decoder_is_opened() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)
    model = net(lambda self, x, y: self.layers(x, y), layers=nn.TransformerDecoder(layer, 1))
    check_invariant(model, (tokens(5, 8), tokens(3, 8)), 4 + 4 + 12)

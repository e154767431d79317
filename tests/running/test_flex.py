"""The FLOPs of models with `flex_attention` and `torch.vmap`, which torch.jit does not trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import net
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from fxprune.flops import count_flops
from fxprune.running.flex import flex_attention_traced

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile", "ignore:.*torch.jit")


@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_counts_as_the_two_products_that_it_computes(causal: bool) -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 6, 6, device="cpu") if causal else None

    def forward(self: Any, x: Tensor) -> Any:
        query, key, value = self.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return flex_attention(query, key, value, block_mask=mask)

    assert count_flops(net(forward, qkv=nn.Linear(8, 48)), torch.randn(2, 6, 8)) == 12 * 8 * 48 + 2 * 2 * 4 * 6 * 6 * 4


def test_products_of_mapped_functions_are_not_missed() -> None:
    def mapped(x: Tensor) -> Any:
        return torch.vmap(lambda row: row.outer(row) @ row)(x)

    with flex_attention_traced(), pytest.raises(RuntimeError, match=r"`torch\.vmap` maps cannot be counted"):
        torch.jit.trace(mapped, torch.randn(3, 4))  # type: ignore[no-untyped-call]

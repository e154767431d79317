"""What activations take at a time, counted while a model runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.running.peak import peak_activations


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y, z = x * 2, x * 3
        y.add_(z)
        return y.view(-1)[:10] + 1


def test_what_shares_memory_counts_once_and_what_is_freed_no_more() -> None:
    assert peak_activations(Branches().train(), (torch.zeros(1, 1000),), {}) == 2 * 4000 + 40
    assert peak_activations(nn.ReLU(inplace=True), (torch.zeros(8),), {}) == 0

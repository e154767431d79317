"""The Dagger module: an auxiliary network that reads a group's pretrained weights and gives each channel's gate.

After "Data Agnostic Filter Gating for Efficient Deep Networks" (arXiv 2010.15041): the gates are a function of the
weights alone, whatever the input batch, and a FLOPs-aware regularisation pulls them to the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Dagger", "flops_penalty", "gate", "straight_through"]

_OPEN = 1.0


def gate(x: Tensor, gates: Tensor, index: Tensor, dim: int) -> Tensor:
    """`x` times its channels' gates along one dimension.

    Args:
        x: any tensor.
        gates: the gates of all channels, (number of channels + 1,); the last one is always open.
        index: for each index of `dim` its place in `gates`.
        dim: a negative dimension of `x`.
    """
    return x * gates.index_select(0, index).reshape(-1, *(1,) * (-1 - dim)).to(x.dtype)


class Dagger(nn.Module):
    """Gates of one group of channels from the weights that they own.

    Each channel is described by the size (log of the root mean square) of its slice of every weight, standardised over
    the group. Two linear layers over the whole group, as in squeeze-and-excitation, with a linear path beside them,
    give one logit per channel; a gate is open where its logit is positive. The step passes gradients straight through,
    as if it were the sigmoid. A new module opens every gate.

    Args:
        channels: the number of channels of the group.
        places: for each weight, the dimension that the channels are on and the group's channel at each of its indices
            (or `channels` where another group's stands).
    """

    def __init__(self, channels: int, places: Sequence[tuple[int, Tensor]]) -> None:
        super().__init__()
        self.channels = channels
        self._described: tuple[Any, Tensor] | None = None
        self.dims = [dim for dim, _ in places]
        for number, (_, place) in enumerate(places):
            self.register_buffer(f"place_{number}", place, persistent=False)
        hidden = max(4, min(64, channels // 8))
        self.direct = nn.Parameter(torch.zeros(len(places)))
        self.squeeze = nn.Linear(channels * len(places), hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.constant_(self.excite.bias, _OPEN)

    def describe(self, *weights: Tensor) -> Tensor:
        """The features of each channel: (channels, number of weights); kept until a weight changes."""
        state = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
        if self._described is not None and self._described[0] == state:
            return self._described[1]
        columns = []
        for number, (dim, weight) in enumerate(zip(self.dims, weights, strict=True)):
            place: Tensor = getattr(self, f"place_{number}")
            others = [d for d in range(weight.dim()) if d != dim]
            power = weight.detach().to(self.direct.dtype).square()
            power = power.mean(others) if others else power
            sums = power.new_zeros(self.channels + 1).index_add(0, place, power)
            counts = power.new_zeros(self.channels + 1).index_add(0, place, torch.ones_like(power))
            size = (sums / counts.clamp_min(1))[:-1].clamp_min(1e-12).log()
            columns.append((size - size.mean()) / (size.std(correction=0) + 1e-5))
        features = torch.stack(columns, dim=1)
        self._described = (state, features)
        return features

    def logits(self, *weights: Tensor) -> Tensor:
        """One number per channel; the gate is open where it is positive."""
        features = self.describe(*weights)
        hidden = torch.relu(self.squeeze(features.flatten()))
        logits: Tensor = self.excite(hidden) + features @ self.direct
        return logits

    def forward(self, *weights: Tensor) -> Tensor:
        """Gates, 0 or 1 each: (channels,)."""
        return straight_through(self.logits(*weights))

    def open(self, logits: Tensor) -> None:
        """Start from these logits, all positive: (channels,)."""
        with torch.no_grad():
            self.direct.zero_()
            self.excite.weight.zero_()
            self.excite.bias.copy_(logits)


def straight_through(logits: Tensor) -> Tensor:
    """1 where a logit is positive, else 0; the gradient is the sigmoid's."""
    soft = torch.sigmoid(logits)
    hard = (logits > 0).to(soft.dtype)
    return hard + (soft - soft.detach())


def flops_penalty(flops: Tensor, target: float) -> Tensor:
    """FLOPs-aware regularisation: the relative excess over the target, squared and linear; 0 below it.

    Args:
        flops: FLOPs of the gates, differentiable, as a fraction of the whole model's.
        target: the fraction to reach.
    """
    excess = torch.relu(flops - target) / target
    return excess + excess.square()

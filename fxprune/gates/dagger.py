"""The Dagger module: an auxiliary network that reads a group's pretrained weights and gives each channel's gate.

After "Data Agnostic Filter Gating for Efficient Deep Networks" (arXiv 2010.15041): the gates are a function of the
weights alone, whatever the input batch, and a FLOPs-aware regularisation pulls them to the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Dagger", "Join", "Spread", "flops_balance", "gate", "straight_through"]

_OPEN = 1.0
_HIDDEN = 16
_WIDTH = 0.3


def gate(x: Tensor, gates: Tensor, dim: int) -> Tensor:
    """`x` times its channels' gates along one dimension.

    Args:
        x: any tensor.
        gates: one for each index of `dim`.
        dim: a negative dimension of `x`.
    """
    return x * gates.to(x.dtype).reshape(-1, *(1,) * (-1 - dim))


class Dagger(nn.Module):
    """Logits of the gates of one group of channels, from the weights that they own.

    Each channel is described by the size (log of the root mean square) of its slice of every weight, standardised over
    the group. A small network, the same for all channels of the group, with a linear path beside it and a bias of each
    channel's own, makes of that one logit per channel; a gate is open where its logit is positive. A new module opens
    every gate.

    Args:
        channels: the number of channels of the group.
        places: for each weight, the dimension that the channels are on and the group's channel at each of its indices
            (or `channels` where another group's stands).
    """

    def __init__(self, channels: int, places: Sequence[tuple[int, Tensor]]) -> None:
        super().__init__()
        self.channels = channels
        self._described: Any = None
        self._held = False
        self.dims = [dim for dim, _ in places]
        self.features: Tensor
        self._in_order = [torch.equal(place, torch.arange(channels)) for _, place in places]
        for number, (_, place) in enumerate(places):
            self.register_buffer(f"place_{number}", place, persistent=False)
        self.register_buffer("features", torch.empty(channels, len(places)), persistent=False)
        self.hidden = nn.Linear(len(places), _HIDDEN)
        self.out = nn.Parameter(torch.zeros(_HIDDEN))
        self.direct = nn.Parameter(torch.zeros(len(places)))
        self.bias = nn.Parameter(torch.full((channels,), _OPEN))

    def describe(self, *weights: Tensor) -> Tensor:
        """The features of each channel: (channels, number of weights); kept until a weight changes."""
        state = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
        if self._held or self._described == state:
            return self.features
        with torch.no_grad():
            columns = [self._sizes(number, weight) for number, weight in enumerate(weights)]
            sizes = torch.stack(columns, dim=1).clamp_min(1e-6).log()
            std, mean = torch.std_mean(sizes, dim=0, correction=0)
            self.features = (sizes - mean) / (std + 1e-5)
        self._described = state
        return self.features

    def hold(self, *weights: Tensor) -> None:
        """Stay with the description of these weights, whatever becomes of them."""
        self.describe(*weights)
        self._held = True

    def _sizes(self, number: int, weight: Tensor) -> Tensor:
        """The root mean square of each channel's slice of a weight."""
        dim = self.dims[number]
        others = [d for d in range(weight.dim()) if d != dim]
        weight = (weight.abs() if weight.is_complex() else weight).to(self.direct.dtype)
        size = weight.square().mean(others).sqrt() if others else weight.abs()
        if self._in_order[number]:
            return size
        place: Tensor = getattr(self, f"place_{number}")
        sums = size.new_zeros(self.channels + 1).index_add(0, place, size)
        counts = size.new_zeros(self.channels + 1).index_add(0, place, torch.ones_like(size))
        return (sums / counts.clamp_min(1))[:-1]

    def forward(self, *weights: Tensor) -> Tensor:
        """One number per channel; the gate is open where it is positive: (channels,)."""
        features = self.describe(*weights)
        straight = torch.addmv(self.bias, features, self.direct)
        return torch.addmv(straight, torch.relu(self.hidden(features)), self.out)

    def open(self, logits: Tensor) -> None:
        """Start from these logits: (channels,)."""
        with torch.no_grad():
            self.out.zero_()
            self.direct.zero_()
            self.bias.copy_(logits)


class Join(nn.Module):
    """The gates of all groups in one vector, 0 or 1 each, with one more at the end that is always open.

    Attributes:
        pull: what is added to the gradient by the logits, which are those of all groups in a row.
    """

    pull: Tensor | None = None

    def forward(self, logits: list[Tensor]) -> Tensor:
        """Gates from the groups' logits."""
        joined, pull = torch.cat(logits), self.pull
        if pull is not None and joined.requires_grad:
            joined.register_hook(lambda gradient: gradient + pull)  # type: ignore[no-untyped-call]
        gates = straight_through(joined)
        return torch.cat([gates, gates.new_ones(1)])


class Spread(nn.Module):
    """The gates at each place that has some, taken from those of all channels at once."""

    def __init__(self) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", torch.empty(0, dtype=torch.long), persistent=False)
        self.sizes: list[int] = []

    def add(self, index: Tensor) -> int:
        """A place more, with the number of the gate at each of its indices; returns the place's number."""
        self.index = torch.cat([self.index, index])
        self.sizes.append(len(index))
        return len(self.sizes) - 1

    def forward(self, gates: Tensor) -> tuple[Tensor, ...]:
        """The gates of each place, from all of them in a row."""
        return torch.split(gates.index_select(0, self.index), self.sizes)


def straight_through(logits: Tensor) -> Tensor:
    """1 where a logit is positive, else 0; the gradient is that of a steep sigmoid: what is near 0 learns most."""
    soft = torch.sigmoid(logits / _WIDTH)
    hard = (logits > 0).to(soft.dtype)
    return hard + (soft - soft.detach())


def flops_balance(task: Tensor, flops: Tensor) -> float:
    """The weight of the FLOPs in the loss at which its pull and the task's leave the FLOPs as they are.

    With this multiplier a step moves along the surface of equal FLOPs: the gradient of `task + weight * FLOPs` has no
    part along that of the FLOPs.

    Args:
        task: the gradient of the task's loss by the logits.
        flops: the gradient of the FLOPs by the logits.
    """
    size = float(flops.square().sum())
    return max(0.0, -float((task * flops).sum()) / size) if size else 0.0

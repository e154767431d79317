"""The Dagger module: an auxiliary network that reads the pretrained weights and gives each channel's gate.

After "Data Agnostic Filter Gating for Efficient Deep Networks" (arXiv 2010.15041): the gates are a function of the
weights alone, whatever the input batch, and a FLOPs-aware regularisation pulls them to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Dagger", "Description", "Spread", "flops_balance", "gate", "straight_through"]

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


class Description(nn.Module):
    """What the Dagger module sees of a group of channels: the weights that they own.

    Each channel is described by the size (log of the root mean square) of its slice of every weight, standardised over
    the group.

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

    def forward(self, *weights: Tensor) -> Tensor:
        """The features of each channel: (channels, number of weights); the same tensor until a weight changes."""
        if self._held:
            return self.features
        state = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
        if self._described == state:
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
        self(*weights)
        self._held = True

    def _sizes(self, number: int, weight: Tensor) -> Tensor:
        """The root mean square of each channel's slice of a weight."""
        dim = self.dims[number]
        others = [d for d in range(weight.dim()) if d != dim]
        weight = (weight.abs() if weight.is_complex() else weight).to(self.features.dtype)
        size = weight.square().mean(others).sqrt() if others else weight.abs()
        if self._in_order[number]:
            return size
        place: Tensor = getattr(self, f"place_{number}")
        sums = size.new_zeros(self.channels + 1).index_add(0, place, size)
        counts = size.new_zeros(self.channels + 1).index_add(0, place, torch.ones_like(size))
        return (sums / counts.clamp_min(1))[:-1]


class Dagger(nn.Module):
    """The gates of all channels, 0 or 1 each, from the descriptions of their groups; one more at the end is 1.

    A small network, the same for all channels of a group and another for each group, with a linear path beside it and
    a bias of each channel's own, makes of a description one logit per channel; a gate is open where its logit is
    positive. A new module opens every gate. Groups of about as many channels are computed together.

    Args:
        shapes: of each group's description.

    Attributes:
        bias: of all channels in a row (channels,).
        pull: what is added to the gradient by the logits of all channels (channels,).
    """

    pull: Tensor | None = None

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((sum(channels for channels, _ in shapes),), _OPEN))
        self.tables = nn.ModuleList()
        by_size: dict[int, list[int]] = {}
        for number, (channels, _) in enumerate(shapes):
            by_size.setdefault(channels.bit_length(), []).append(number)
        self._groups = list(by_size.values())
        starts = np.zeros(len(shapes), dtype=np.int64)
        entries = 0
        for groups in self._groups:
            table = _Table([shapes[number] for number in groups])
            self.tables.append(table)
            starts[groups] = entries + table.channels * np.arange(len(groups))
            entries += table.channels * len(groups)
        order = [start + np.arange(channels) for start, (channels, _) in zip(starts, shapes, strict=True)]
        self.order: Tensor
        self.register_buffer("order", torch.from_numpy(np.concatenate(order)), persistent=False)

    def logits(self, descriptions: Sequence[Tensor]) -> Tensor:
        """One number for each channel, open where it is positive: (channels,)."""
        parts = [
            table([descriptions[number] for number in groups]).flatten()
            for table, groups in zip(self.tables, self._groups, strict=True)
        ]
        return torch.cat(parts).index_select(0, self.order) + self.bias

    def forward(self, descriptions: Sequence[Tensor]) -> Tensor:
        """The gates (channels + 1,)."""
        logits, pull = self.logits(descriptions), self.pull
        if pull is not None and logits.requires_grad:
            logits.register_hook(lambda gradient: gradient + pull)  # type: ignore[no-untyped-call]
        gates = straight_through(logits)
        return torch.cat([gates, gates.new_ones(1)])

    def open(self, logits: Tensor) -> None:
        """Start from these logits: (channels,)."""
        with torch.no_grad():
            for table in self.tables:
                table.silence()  # type: ignore[operator]
            self.bias.copy_(logits)


class _Table(nn.Module):
    """The networks of several groups; what a group lacks in channels and features is filled with zeros."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.channels, features = (max(sizes) for sizes in zip(*shapes, strict=True))
        # As in nn.Linear.
        bounds = torch.tensor([1 / math.sqrt(own) for _, own in shapes])[:, None, None]
        self.hidden = nn.Parameter(bounds * (2 * torch.rand(len(shapes), features, _HIDDEN) - 1))
        self.hidden_bias = nn.Parameter(bounds * (2 * torch.rand(len(shapes), 1, _HIDDEN) - 1))
        self.out = nn.Parameter(torch.zeros(len(shapes), _HIDDEN, 1))
        self.direct = nn.Parameter(torch.zeros(len(shapes), features, 1))
        self._read: list[Tensor] = []
        self._filled = torch.empty(0)

    def forward(self, descriptions: list[Tensor]) -> Tensor:
        """Numbers (groups, most channels of one)."""
        x = self._in_one(descriptions)
        hidden = torch.relu(torch.baddbmm(self.hidden_bias, x, self.hidden))
        return torch.baddbmm(torch.bmm(x, self.direct), hidden, self.out)

    def _in_one(self, descriptions: list[Tensor]) -> Tensor:
        """All descriptions in one tensor (groups, channels, features), made anew where one of them is another."""
        known = len(self._read) == len(descriptions)
        if not known or any(a is not b for a, b in zip(self._read, descriptions, strict=True)):
            self._filled = self.direct.new_zeros(len(descriptions), self.channels, self.direct.shape[1])
            for filled, description in zip(self._filled, descriptions, strict=True):
                filled[: description.shape[0], : description.shape[1]] = description
            self._read = descriptions
        return self._filled

    def silence(self) -> None:
        """Give nothing but zeros."""
        self.out.zero_()
        self.direct.zero_()


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

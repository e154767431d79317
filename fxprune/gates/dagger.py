"""The Dagger module: a small network that reads the pretrained weights and says which channels' gates are open.

After "Data Agnostic Filter Gating for Efficient Deep Networks" (arXiv 2010.15041): the gates are a function of the
weights alone, not of the input batch, and a regularisation that knows the FLOPs pulls them to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["BlockDescription", "Dagger", "Description", "straight_through"]

# None of the constants in this module is tuned.
_INITIAL_LOGIT = 1.0
_HIDDEN = 16
# The width of the sigmoid whose slope the gates have: the smaller, the fewer gates learn.
_WIDTH = 0.3

_Version: TypeAlias = "tuple[int, int, torch.dtype, torch.device]"


class Description(nn.Module):
    """What the Dagger module reads of a group: the sizes of the weights of each channel.

    Each channel has one feature for each weight of the group: the log of the root mean square of its slice,
    standardised over the group.

    Args:
        channels: the number of channels of the group.
        places: for each weight, the dimension that the channels are on, and for each index of it the channel's number
            in the group (or `channels` where it is a channel of another group).
    """

    def __init__(self, channels: int, places: Sequence[tuple[int, Tensor]]) -> None:
        super().__init__()
        self.channels = channels
        self.dims = [dim for dim, _ in places]
        self.features: Tensor
        self.register_buffer("features", torch.empty(channels, len(places)), persistent=False)
        for number, (_, place) in enumerate(places):
            self.register_buffer(f"place_{number}", place, persistent=False)
        self._in_order = [torch.equal(place, torch.arange(channels)) for _, place in places]
        self._described: tuple[_Version, ...] | None = None
        self._held = False

    def forward(self, *weights: Tensor) -> Tensor:
        """The features (channels, number of weights); the same tensor until a weight changes."""
        if self._held:
            return self.features
        versions = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
        if versions != self._described:
            with torch.no_grad():
                sizes = self._sizes(weights).clamp_min(1e-6).log()
                std, mean = torch.std_mean(sizes, dim=0, correction=0)
                self.features = (sizes - mean) / (std + 1e-5)
            self._described = versions
        return self.features

    def hold(self, *weights: Tensor) -> None:
        """Describe these weights from now on, even after they have changed."""
        self(*weights)
        self._held = True

    def _sizes(self, weights: Sequence[Tensor]) -> Tensor:
        """The numbers whose logs are the features (channels, number of weights)."""
        return torch.stack([self._of_slices(number, weight) for number, weight in enumerate(weights)], dim=1)

    def _of_slices(self, number: int, weight: Tensor) -> Tensor:
        """The root mean square of each channel's slice of a weight."""
        dim = self.dims[number]
        others = [d for d in range(weight.dim()) if d != dim]
        weight = _real(weight, self.features.dtype)
        size = weight.square().mean(others).sqrt() if others else weight.abs()
        if self._in_order[number]:
            return size
        place: Tensor = getattr(self, f"place_{number}")
        sums = size.new_zeros(self.channels + 1).index_add(0, place, size)
        counts = size.new_zeros(self.channels + 1).index_add(0, place, torch.ones_like(size))
        return (sums / counts.clamp_min(1))[:-1]


class BlockDescription(Description):
    """What the Dagger module reads of all blocks: the root mean square of the tensors at the end of each.

    Args:
        counts: how many tensors each block has at its end.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__(len(counts), [])
        self.features = torch.empty(len(counts), 1)
        self._counts = list(counts)

    def _sizes(self, weights: Sequence[Tensor]) -> Tensor:
        squares = torch.stack([_real(weight, self.features.dtype).square().mean() for weight in weights])
        return torch.stack([of_block.mean().sqrt() for of_block in torch.split(squares, self._counts)])[:, None]


def _real(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight.abs() if weight.is_complex() else weight).to(dtype)


class Dagger(nn.Module):
    """The gates of all channels and blocks, each 0 or 1, from the descriptions of their groups.

    All blocks are one group here, with blocks for channels. Each group has its own small network, a hidden layer beside
    a linear path, which all of its channels share; each channel has its own bias. They give one logit per channel, and
    the gate is open where that is positive. In a new module every gate is open. Groups of similar size are computed
    together.

    Args:
        shapes: the shape of each group's description.

    Attributes:
        bias: of all channels in a row (channels,).
        pull: added to the gradient by the logits of all channels (channels,).
    """

    pull: Tensor | None = None

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((sum(channels for channels, _ in shapes),), _INITIAL_LOGIT))
        self.networks = nn.ModuleList()
        by_size: dict[int, list[int]] = {}
        for number, (channels, _) in enumerate(shapes):
            by_size.setdefault(channels.bit_length(), []).append(number)
        self._groups = list(by_size.values())
        starts = np.zeros(len(shapes), dtype=np.int64)
        entries = 0
        for groups in self._groups:
            networks = _Networks([shapes[number] for number in groups])
            self.networks.append(networks)
            starts[groups] = entries + networks.channels * np.arange(len(groups))
            entries += networks.channels * len(groups)
        order = [start + np.arange(channels) for start, (channels, _) in zip(starts, shapes, strict=True)]
        self.order: Tensor
        self.register_buffer("order", torch.from_numpy(np.concatenate(order)), persistent=False)

    def logits(self, descriptions: Sequence[Tensor]) -> Tensor:
        """One number per channel, positive where its gate is open: (channels,)."""
        parts = [
            networks([descriptions[number] for number in groups]).flatten()
            for networks, groups in zip(self.networks, self._groups, strict=True)
        ]
        return torch.cat(parts).index_select(0, self.order) + self.bias

    def forward(self, descriptions: Sequence[Tensor]) -> Tensor:
        """The gates, and behind them a 1 for what has no gate: (channels + 1,)."""
        logits, pull = self.logits(descriptions), self.pull
        if pull is not None and logits.requires_grad:
            logits.register_hook(lambda gradient: gradient + pull)  # type: ignore[no-untyped-call]
        gates = straight_through(logits)
        return torch.cat([gates, gates.new_ones(1)])

    def set_logits(self, logits: Tensor) -> None:
        """Give these logits (channels,), whatever the weights are."""
        with torch.no_grad():
            for networks in self.networks:
                networks.silence()  # type: ignore[operator]
            self.bias.copy_(logits)


class _Networks(nn.Module):
    """The networks of several groups, each padded with zeros to the most channels and features of one of them."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.channels, features = (max(sizes) for sizes in zip(*shapes, strict=True))
        # The initialisation of nn.Linear.
        bounds = torch.tensor([1 / math.sqrt(own) for _, own in shapes])[:, None, None]
        self.hidden = nn.Parameter(bounds * (2 * torch.rand(len(shapes), features, _HIDDEN) - 1))
        self.hidden_bias = nn.Parameter(bounds * (2 * torch.rand(len(shapes), 1, _HIDDEN) - 1))
        self.out = nn.Parameter(torch.zeros(len(shapes), _HIDDEN, 1))
        self.direct = nn.Parameter(torch.zeros(len(shapes), features, 1))
        self._read: list[Tensor] = []
        self._padded = torch.empty(0)

    def forward(self, descriptions: list[Tensor]) -> Tensor:
        """Numbers (groups, most channels of one)."""
        x = self._in_one(descriptions)
        hidden = torch.relu(torch.baddbmm(self.hidden_bias, x, self.hidden))
        return torch.baddbmm(torch.bmm(x, self.direct), hidden, self.out)

    def _in_one(self, descriptions: list[Tensor]) -> Tensor:
        """All descriptions in one tensor (groups, channels, features), built again only if one of them changed."""
        known = len(self._read) == len(descriptions)
        if not known or any(a is not b for a, b in zip(self._read, descriptions, strict=True)):
            self._padded = self.direct.new_zeros(len(descriptions), self.channels, self.direct.shape[1])
            for padded, description in zip(self._padded, descriptions, strict=True):
                padded[: description.shape[0], : description.shape[1]] = description
            self._read = descriptions
        return self._padded

    def silence(self) -> None:
        """Give nothing but zeros."""
        self.out.zero_()
        self.direct.zero_()


def straight_through(logits: Tensor) -> Tensor:
    """1 where a logit is positive, else 0; the gradient is that of a steep sigmoid, the largest near 0.

    (Straight-through estimator: Bengio et al., 2013.)

    Examples:
        >>> straight_through(torch.tensor([-0.1, 0.2]))
        tensor([0., 1.])
    """
    soft = torch.sigmoid(logits / _WIDTH)
    hard = (logits > 0).to(soft.dtype)
    return hard + (soft - soft.detach())

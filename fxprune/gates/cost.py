"""What open gates cost, and how far all logits have to be shifted for the open ones to meet a budget."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.channels import Block, ChannelGraph, Group, Ids, Scores
from fxprune.channels.polynomial import Polynomial
from fxprune.gates.dagger import straight_through

__all__ = ["GateCost", "cost_of_gates", "flops_balance"]

# The best channel of each group stays open, by this much: any small number will do.
_MARGIN = 1e-3


@dataclass(frozen=True, eq=False)
class GateCost:
    """What a model costs whose channels and blocks are kept where their gates are open.

    Logits are those of all gates in a row, group after group and then the blocks; a gate is open where its logit is
    positive. Channels and blocks without a gate are kept.

    Attributes:
        polynomial: FLOPs, or time where that was measured.
        total: with all channels and blocks kept.
        channels: the channel of each gate; of a block it is its number among the channels.
        sizes: the number of gates of each group.
        blocks: the channels that go with each block that has a gate.
    """

    polynomial: Polynomial
    total: int
    channels: Ids
    sizes: tuple[int, ...]
    blocks: tuple[Ids, ...] = ()

    def alive(self, logits: Scores) -> npt.NDArray[np.bool_]:
        """Which channels and blocks are kept: (number of channels,)."""
        alive = np.ones(self.polynomial.num_channels, dtype=bool)
        opened = logits > 0
        alive[self.channels] = opened
        for channels, stays in zip(self.blocks, opened[sum(self.sizes) :], strict=True):
            alive[channels] &= stays
        return alive

    def fraction(self, logits: Scores) -> float:
        """The cost of the open gates, as a fraction of the total."""
        return self.polynomial(self.alive(logits)) / self.total

    def gradient(self, logits: Scores) -> Tensor:
        """The derivative of that fraction by each logit."""
        by_channels = torch.from_numpy(self.polynomial.marginal(self.alive(logits)) / self.total)
        variable = torch.from_numpy(logits).requires_grad_()
        gates = straight_through(variable)
        kept = torch.ones_like(by_channels).index_put((torch.from_numpy(self.channels),), gates)
        first = sum(self.sizes)
        for own, channels, gate in zip(self.channels[first:], self.blocks, gates[first:], strict=True):
            others = torch.zeros(len(kept), dtype=torch.bool)
            others[channels], others[own] = True, False
            kept = torch.where(others, kept * gate, kept)
        (by_logits,) = torch.autograd.grad(kept, variable, by_channels)
        return by_logits.float()

    def excess(self, logits: Scores, target: float) -> Scores:
        """What to subtract from each logit, so that the open gates cost at most `target`.

        It is the same number for all, but less in a group that would be emptied: its best gate stays open. Blocks may
        all go.
        """
        best = np.full(len(logits), np.inf)
        if self.sizes:
            starts = np.cumsum([0, *self.sizes])
            best[: starts[-1]] = np.repeat(np.maximum.reduceat(logits[: starts[-1]], starts[:-1]), self.sizes)
        order = np.sort(logits)
        steps = np.concatenate([[order[0] - 2 * _MARGIN], order, [order[-1] + 2 * _MARGIN]])

        def shift(threshold: float) -> Scores:
            return np.minimum(threshold, best - _MARGIN)

        cut = bisect.bisect_left(
            range(len(order) + 1),
            True,
            key=lambda number: self.polynomial(self.alive(logits - shift(float(steps[number])))) <= target,
        )
        # Between two logits, so that rounding cannot put one of them on the other side.
        return shift(float(steps[cut : cut + 2].mean()))


def cost_of_gates(graph: ChannelGraph, groups: Sequence[Group], blocks: Sequence[Block] = ()) -> GateCost:
    """The cost of a model by the gates of some groups and blocks: FLOPs, or time where that was measured."""
    channels = np.concatenate(
        [*(group.channels for group in groups), np.array([block.channel for block in blocks], dtype=np.int64)]
    )
    sizes, going = tuple(map(len, groups)), tuple(block.channels for block in blocks)
    return GateCost(graph.price, graph.price.total, channels, sizes, going)


def flops_balance(task: Tensor, flops: Tensor) -> float:
    """The weight of the FLOPs in the loss that makes a step leave the FLOPs as they are.

    The gradient of `task + weight * FLOPs` then has no part along that of the FLOPs.

    Args:
        task: the gradient of the task's loss by the logits.
        flops: the gradient of the FLOPs by the logits.
    """
    size = float(flops.square().sum())
    return max(0.0, -float((task * flops).sum()) / size) if size else 0.0

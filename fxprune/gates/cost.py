"""What open gates cost, and how far all logits have to be shifted for the open ones to meet a budget."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.channels import ChannelGraph, Group, Ids, Scores
from fxprune.channels.polynomial import Polynomial
from fxprune.gates.dagger import straight_through

__all__ = ["GateCost", "cost_of_gates", "flops_balance"]

# The best channel of each group stays open, by this much: any small number will do.
_MARGIN = 1e-3


@dataclass(frozen=True, eq=False)
class GateCost:
    """What a model costs whose channels are kept where their gates are open.

    Logits are those of all gates in a row, group after group; a gate is open where its logit is positive. Channels
    without a gate are kept.

    Attributes:
        polynomial: FLOPs, or time where that was measured.
        total: with all channels kept.
        channels: the channel of each gate.
        sizes: the number of gates of each group.
    """

    polynomial: Polynomial
    total: int
    channels: Ids
    sizes: tuple[int, ...]

    def alive(self, logits: Scores, threshold: float = 0.0) -> npt.NDArray[np.bool_]:
        """Which channels are kept: (number of channels,)."""
        alive = np.ones(self.polynomial.num_channels, dtype=bool)
        alive[self.channels] = logits > threshold
        return alive

    def fraction(self, logits: Scores) -> float:
        """The cost of the open gates, as a fraction of the total."""
        return self.polynomial(self.alive(logits)) / self.total

    def gradient(self, logits: Scores) -> Tensor:
        """The derivative of that fraction by each logit."""
        by_gates = torch.from_numpy(self.polynomial.marginal(self.alive(logits))[self.channels] / self.total)
        variable = torch.from_numpy(logits).requires_grad_()
        (by_logits,) = torch.autograd.grad(straight_through(variable), variable, by_gates)
        return by_logits.float()

    def excess(self, logits: Scores, target: float) -> Scores:
        """What to subtract from each logit, so that the open gates cost at most `target`.

        It is the same number for all, but less in a group that would be emptied: its best gate stays open, at a cost
        that comes on top.
        """
        order = np.sort(logits)
        steps = np.concatenate([[order[0] - 2 * _MARGIN], order, [order[-1] + 2 * _MARGIN]])
        cut = bisect.bisect_left(
            range(len(order) + 1),
            True,
            key=lambda number: self.polynomial(self.alive(logits, float(steps[number]))) <= target,
        )
        # Between two logits, so that rounding cannot put one of them on the other side.
        threshold = float(steps[cut : cut + 2].mean())
        best_of_group = np.maximum.reduceat(logits, np.cumsum([0, *self.sizes[:-1]]))
        return np.repeat(np.minimum(threshold, best_of_group - _MARGIN), self.sizes)


def cost_of_gates(graph: ChannelGraph, groups: Sequence[Group]) -> GateCost:
    """The cost of a model by the gates of some groups: FLOPs, or time where that was measured."""
    channels = np.concatenate([group.channels for group in groups])
    return GateCost(graph.price, graph.price.total, channels, tuple(map(len, groups)))


def flops_balance(task: Tensor, flops: Tensor) -> float:
    """The weight of the FLOPs in the loss that makes a step leave the FLOPs as they are.

    The gradient of `task + weight * FLOPs` then has no part along that of the FLOPs.

    Args:
        task: the gradient of the task's loss by the logits.
        flops: the gradient of the FLOPs by the logits.
    """
    size = float(flops.square().sum())
    return max(0.0, -float((task * flops).sum()) / size) if size else 0.0

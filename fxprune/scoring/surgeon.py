"""Scores from data: what removing a channel costs once the layers that read it have been refitted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from fxprune.channels import ChannelGraph, Group, Scores
from fxprune.data import Batch, Batches, Data
from fxprune.errors import CannotScoreError
from fxprune.progress import Progress, shown
from fxprune.scoring.calibration import calibrate_costs
from fxprune.scoring.layer_statistics import collect_statistics
from fxprune.scoring.refitting import Reader, Refit
from fxprune.scoring.sensitivity import check_finite, per_cost

__all__ = ["surgeon_scores"]

# The removal of a group takes so many rounds; within a round, channels are judged one by one. Not tuned.
_ROUNDS = 40


def surgeon_scores(
    graph: ChannelGraph,
    data: Data,
    *,
    flops_power: float = 1.0,
    damping: float = 1e-2,
    seed: int = 0,
    progress: bool | Progress = False,
) -> Scores:
    """Second order with refitting: what a channel's removal adds to the loss if the others take over what they can.

    A channel that is nearly a sum of others costs little, even if the loss depends on it: `fxprune.compensate` adds
    its part to the weights of the others. (Optimal Brain Surgeon: Hassibi and Stork, NeurIPS 1992; here for channels,
    with output errors weighted by their squared gradients.)

    1. Two halves of the samples are formed, such that no sample of one is like a sample of the other. One half says
       what the others take over, and the other half what is lost then; then they change places, and the mean counts.
       Covariances of a layer's inputs are shrunk to their diagonal by samples / (samples + inputs). Without both,
       every channel would seem to be a sum of the others where there are fewer samples than inputs.
    2. From each group, the channels are removed in a greedy order. The score of a channel is its cost at its turn, in
       units of `fisher_scores`. Channels that no convolution or linear layer reads keep those scores.
    3. The costs of groups are calibrated (`fxprune.scoring.calibration`): a quarter, half and three quarters of each
       group are removed, the layers that read it refitted, where there are any, and the loss of the outputs measured on
       a few samples of the second half.

    Args:
        graph: the analysed model.
        data: see `fxprune.data`; labels may be missing. One pass is made.
        flops_power: scores are divided by this power of the FLOPs that a channel costs.
        damping: added to covariances, relative to the mean variance.
        seed: of the halves, and of the directions where there are no labels.
        progress: show bars in a terminal, or call this function with the samples done, then with the groups.

    Returns:
        Float array with one entry per channel number, not negative.

    Raises:
        CannotScoreError: the model does not run on the data, or its outputs on them give no finite scores.
    """
    with shown(progress) as show:
        batches = Batches(data, model=graph.module)
        statistics = collect_statistics(graph, batches, seed, show)
        check_finite(graph, statistics.fisher, CannotScoreError)
        steps, done = (2 if None in statistics.judges else 4) * len(graph.groups), itertools.count(1)

        def on_step() -> None:
            show("refit", next(done), steps, {})

        try:
            first, second = (
                _costs(graph, statistics.fisher, statistics.readers(damping, half), judge, on_step)
                # Each half judges what was fitted to the other.
                for half, judge in enumerate(reversed(statistics.judges))
            )
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise CannotScoreError(
                f"layers cannot be refitted to these samples ({error}): give more samples, or another method"
            ) from error
        return per_cost(graph, (first + second) / 2, flops_power)


def _costs(
    graph: ChannelGraph,
    fisher: Scores,
    layers: list[Reader],
    judge: Batch | None,
    on_step: Callable[[], None],
) -> Scores:
    """Costs of all channels, with the layers refitted, calibrated on some samples if there are any."""
    readers = partial(_readers_of, graph, layers)
    costs: Scores = fisher.copy()
    for group in graph.groups:
        on_step()
        mine = readers(group)
        if mine:
            costs[group.channels] = _costs_in_turn(mine, len(group), float(fisher[group.channels].sum()))
    return costs if judge is None else calibrate_costs(graph, costs, readers, judge, on_step)


def _readers_of(graph: ChannelGraph, readers: list[Reader], group: Group) -> list[Reader]:
    return [local for reader in readers if (local := reader.within(graph, group)) is not None]


def _costs_in_turn(readers: list[Reader], size: int, fisher: float) -> Scores:
    """Costs of a group's channels, each at its turn, the cheapest first.

    Args:
        readers: the layers that read the group.
        size: its number of channels.
        fisher: the sum of its scores without refitting, which gives the unit.

    Returns:
        One cost per channel (size,), not falling in the order of removal.
    """
    unit = fisher / max(sum(reader.raw_cost() for reader in readers), 1e-30)
    refits = [Refit(reader) for reader in readers]
    left = np.ones(size, dtype=bool)
    costs, highest, spent = np.zeros(size), 0.0, 0.0
    step = math.ceil(size / _ROUNDS)
    while left.any():
        next_costs = np.zeros(size)
        for refit in refits:
            refit.add_costs(next_costs)
        places = np.flatnonzero(left)
        chosen = places[np.argsort(next_costs[places], kind="stable")[:step]]
        for refit in refits:
            refit.remove(chosen)
        before, spent = spent, sum(refit.error() for refit in refits)
        highest = max(highest, unit * (spent - before) / len(chosen))
        costs[chosen] = highest
        left[chosen] = False
    return costs

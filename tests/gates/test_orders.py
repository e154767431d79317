"""Orders to start from: a criterion's on parts of the samples, with blocks where the loss without each puts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gates.trained_net import trained_net

import fxprune
from fxprune.data import Batch
from fxprune.gates.orders import orders_of, with_blocks
from fxprune.scoring.block_losses import BlockLosses


def test_a_criterion_that_reads_data_gives_an_order_for_each_part_and_their_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph, data = trained_net()
    monkeypatch.setattr("fxprune.gates.orders.PART", 64)
    samples = Batch((torch.cat([x for x, _ in data]),), {})
    orders = orders_of(graph, "surgeon", samples, seed=0)
    assert len(orders) == 5, "four parts of 64 samples, and the mean of their scores"
    assert np.allclose(orders[-1], np.mean(orders[:-1], axis=0))
    assert len(orders_of(graph, "surgeon", samples.rows(0, 100), seed=0)) == 1
    assert len(orders_of(graph, "l2", samples, seed=0)) == 1


@pytest.mark.parametrize("start", ["surgeon", "l2"])
def test_blocks_are_among_the_channels_and_in_the_last_order_above_them(start: str) -> None:
    graph, data = trained_net(blocks=(1.0, 0.001, 0.5))
    samples = Batch((torch.cat([x for x, _ in data]),), {})
    orders = orders_of(graph, start, samples, seed=0)
    among, above = with_blocks(graph, orders, start, samples)
    channels = np.concatenate([group.channels for group in graph.groups])
    blocks = [block.channel for block in graph.blocks]
    for made in (among, above):
        assert (made[channels] == orders[0][channels]).all()
    assert (above[blocks] == np.inf).all()
    lost = [BlockLosses(graph, samples).without([block]) for block in graph.blocks]
    # All save the same.
    assert among[blocks].argsort().tolist() == np.argsort(lost).tolist()
    assert among[blocks].min() == among[graph.blocks[1].channel]
    if start == "surgeon":
        assert among[blocks] / among[blocks].sum() == pytest.approx(np.array(lost) / sum(lost))
    else:
        ranks = (orders[0][channels][:, None] < among[blocks]).mean(axis=0)
        assert sorted(ranks) == pytest.approx([1 / 6, 1 / 2, 5 / 6], abs=0.05)


def test_a_block_without_which_outputs_are_no_numbers_is_above_all() -> None:
    graph, data = trained_net(blocks=(1.0,))
    broken = Batch((torch.full_like(data[0][0], torch.nan),), {})
    (block,) = graph.blocks
    order = fxprune.scores(graph, "l2")
    assert with_blocks(graph, [order], "surgeon", broken)[0][block.channel] == np.inf

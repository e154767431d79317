"""Each process takes its part of each batch, and draws what it would have drawn in any other run."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from fxprune import FxpruneError
from fxprune.training.sharding import Shards


class Numbers(Dataset):
    loaded: ClassVar[list[int]] = []

    def __len__(self):
        return 20

    def __getitem__(self, index):
        Numbers.loaded.append(index)
        return torch.tensor([float(index)])


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_batch_between_them(processes, as_list):
    data = DataLoader(Numbers(), batch_size=6, shuffle=True)
    if as_list:
        data = [torch.arange(6.0)[:, None] + 6 * k for k in range(3)] + [torch.tensor([[18.0], [19.0]])]
    epochs = []
    for epoch in range(2):
        whole = [batch.args[0].flatten().tolist() for _, batch in Shards(data, seed=5).epoch(epoch)]
        # A last batch of 2 is too small for 3 processes.
        whole = [rows for rows in whole if len(rows) >= processes]
        parts = [list(Shards(data, rank, processes, seed=5).epoch(epoch)) for rank in range(processes)]
        joined = [
            torch.cat([batch.args[0] for _, batch in step]).flatten().tolist() for step in zip(*parts, strict=True)
        ]
        assert joined == whole
        epochs.append(joined)
    assert as_list or epochs[0] != epochs[1]


def test_a_process_loads_no_more_than_its_part():
    Numbers.loaded = []
    list(Shards(DataLoader(Numbers(), batch_size=10), 1, 2).epoch(0))
    assert Numbers.loaded == [*range(5, 10), *range(15, 20)]
    with pytest.raises(FxpruneError, match="batches of 2 samples for 3 processes"):
        Shards(DataLoader(Numbers(), batch_size=2), 0, 3)


def test_an_epoch_that_starts_late_draws_what_it_would_have_drawn():
    def draws(start):
        walk = Shards(DataLoader(Numbers(), batch_size=6, shuffle=True)).epoch(1, start)
        return [(step, batch.args[0].tolist(), torch.rand(1).item()) for step, batch in walk]

    assert draws(2) == draws(0)[2:]


class _Lists:
    """A batch sampler that says nothing of its samples."""

    def __iter__(self):
        return iter([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("data", "count"),
    [
        (DataLoader(Numbers(), batch_size=6), 20),
        (DataLoader(Numbers(), batch_size=6, sampler=SubsetRandomSampler(range(9))), 9),
        (DataLoader(Numbers(), batch_sampler=_Lists()), 11),
        (DataLoader([torch.zeros(5, 1), torch.zeros(3, 1)], batch_size=None), 8),
        ([torch.zeros(5, 1)] * 3, 15),
    ],
    ids=["a loader", "a sampler", "a batch sampler", "whole batches", "a list"],
)
def test_the_samples_of_all_processes_are_counted(data, count, processes):
    for rank in range(processes):
        shards = Shards(data, rank, processes)
        assert shards.has_fewer_than(count + 1)
        assert not shards.has_fewer_than(count)

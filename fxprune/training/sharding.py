"""Epochs over data, divided among the processes of a run, with random numbers that depend on the position alone.

Each step has a seed of its own, derived from (seed, epoch, step): a run that continues in the middle of an epoch draws
what it would have drawn, and no random state has to be saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader

from fxprune.data import Batch, Batches
from fxprune.errors import FxpruneError
from fxprune.running.randomness import derive_seed, reseed

__all__ = ["Shards"]


class Shards:
    """The part of the data that one process takes.

    A batch of the data is the *global* batch: each process takes an equal part of its rows, so that any number of
    processes trains on the same batches. A DataLoader loads only the part that is needed; every process iterates over
    all of any other data. A last batch with fewer samples than processes is left out.

    Args:
        data: see `fxprune.data`.
        rank: number of this process.
        processes: how many there are.
        seed: of shuffling, and of augmentation by the global generators of torch, numpy and Python.
        num_classes: where given, class numbers must be below it.
    """

    def __init__(
        self, data: Any, rank: int = 0, processes: int = 1, *, seed: int = 0, num_classes: int | None = None
    ) -> None:
        self.batches = Batches(data, num_classes)
        self.rank, self.processes, self.seed = rank, processes, seed
        self._loads_all = True
        if processes > 1 and type(data) is DataLoader and data.batch_sampler is not None:
            self.batches = Batches(_part_of(data, rank, processes), num_classes)
            self._loads_all = False

    def __len__(self) -> int:
        """The number of batches in an epoch; data without a length is loaded once to count."""
        try:
            return len(self.batches)
        except TypeError:
            return sum(1 for _ in self.epoch(0))

    def has_fewer_than(self, count: int) -> bool:
        """Whether an epoch has fewer samples than this, in all processes; data that does not say so is walked."""
        index_lists = getattr(self.batches.data, "batch_sampler", None)
        sampler = getattr(index_lists, "sampler", None)
        if isinstance(sampler, Sized):
            return len(sampler) < count
        self._set_epoch(0)
        if isinstance(index_lists, _PartOfBatches):
            sizes: Iterator[int] = map(len, index_lists.batch_sampler)
        else:
            sizes = (batch.size for batch in self.batches)
        return not any(seen >= count for seen in itertools.accumulate(sizes))

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """The batches of one epoch with their numbers, from `start` on; earlier ones are loaded and dropped."""
        self._set_epoch(number)
        reseed(self.seed, number)
        walk = iter(self.batches)
        step = 0
        while True:
            reseed(self.seed, number, step)
            batch = next(walk, None)
            if batch is None:
                return
            if self._loads_all and self.processes > 1:
                if batch.size < self.processes:
                    continue
                batch = batch.rows(*_part(batch.size, self.rank, self.processes))
            if step >= start:
                # The model (dropout) must not draw what the models of other processes draw.
                reseed(self.seed, number, step, 1 + self.rank)
                yield step, batch
            step += 1

    def _set_epoch(self, number: int) -> None:
        """Set whatever has a random state of its own to the start of this epoch."""
        data = self.batches.data
        places = (data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
        for place in (*places, getattr(data, "dataset", None)):
            set_epoch = getattr(place, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(number)
            generator = getattr(place, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(derive_seed(self.seed, number))


def _part(size: int, rank: int, processes: int) -> tuple[int, int]:
    return rank * size // processes, (rank + 1) * size // processes


class _PartOfBatches:
    """The index lists of a batch sampler, cut to the part of one process."""

    def __init__(self, batch_sampler: Any, rank: int, processes: int) -> None:
        self.batch_sampler, self.rank, self.processes = batch_sampler, rank, processes
        self.sampler = getattr(batch_sampler, "sampler", None)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        for indices in self.batch_sampler:
            if len(indices) >= self.processes:
                start, stop = _part(len(indices), self.rank, self.processes)
                yield indices[start:stop]


def _part_of(loader: DataLoader[Any], rank: int, processes: int) -> DataLoader[Any]:
    """A loader like the given one that loads only the part of one process of each batch."""
    if loader.batch_size is not None and loader.batch_size < processes:
        raise FxpruneError(
            f"data has batches of {loader.batch_size} samples for {processes} processes: the batch size of the "
            "DataLoader counts all processes together, give each at least one sample"
        )
    part: Any = _PartOfBatches(loader.batch_sampler, rank, processes)
    return DataLoader(
        loader.dataset,
        batch_sampler=part,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )

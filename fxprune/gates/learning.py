"""Learn the gates: task loss plus FLOPs-aware regularisation; how a run goes is in `fxprune.gates.run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch, calibration_batch
from fxprune.errors import FxpruneError
from fxprune.gates.gating import insert_gates
from fxprune.gates.run import Gates, Run, Settings
from fxprune.progress import Progress, shown
from fxprune.running.allocator import freed_memory_kept
from fxprune.running.randomness import preserve_rng_state
from fxprune.scoring.criteria import FROM_DATA, scores
from fxprune.training.runs import digest, make_accelerator
from fxprune.training.sharding import Shards

__all__ = ["Gates", "learn_gates"]

# A criterion that needs data scores on so many parts of it, of so many samples each.
_PARTS, _PART = 4, 512
# Samples on which sets of gates are compared.
_COMPARED = 1024


@freed_memory_kept()
def learn_gates(
    graph: ChannelGraph,
    data: Any,
    *,
    flops: float = 0.5,
    epochs: int = 1,
    start: str | Callable[[ChannelGraph], Scores] = "surgeon",
    lr: float = 0.01,
    train_weights: bool = True,
    weight_lr: float = 0.01,
    temperature: float = 1.0,
    last_resort: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 20,
    resume: bool = True,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Gates:
    """Learn which channels to keep, with Dagger modules (arXiv 2010.15041) that read the weights.

    The loss is the task's (cross-entropy where the data has labels, else distillation from the ungated model) plus the
    FLOPs of the gates times a weight that balances the two. Gates start open, in the order of a criterion; the target
    falls linearly from the whole model to the budget over the first part of the run. They are binary all along
    (straight-through), meet the target at every step, and at least one of each group stays open. In the
    end the gates of the start, at the budget, the learned ones and those halfway between them are compared on samples,
    each compensated on a quarter of them (where weights are trained) and measured by its distance from the model on the
    others; the nearest are kept. So is the order of the start chosen.

    Args:
        graph: the analysed model; neither it nor its module is changed.
        data: a DataLoader or any re-iterable of batches, see `fxprune.data`.
        flops: the fraction of the model's FLOPs to reach; of its time, where `fxprune.time_channels` measured that.
        epochs: passes over the data.
        start: the criterion whose order the gates start in, as for `fxprune.scores`; one that reads data scores on each
            of the first four times 512 samples: these orders and that of their mean are compared. What is compared, is
            so on the first 1,024 samples; where the criterion reads none, on the first batch.
        lr: learning rate of each gate's own bias, falling to zero by a cosine; what the gates of a group share gets a
            sixteenth of it. The start spreads logits over a range of 4: in few steps only gates near the threshold
            change sides. From an order that is no good, such as "random", 0.1 gets further.
        train_weights: train the gated model's weights along with the gates (SGD at `weight_lr`), so that channels are
            judged by what the others can make up for. Otherwise they are frozen, and the gates are those of a cut that
            is not repaired. BatchNorm sees the part of the batch that is each process's: only without it, or with
            frozen weights, do several processes end with the gates of one.
        temperature: of the distillation.
        last_resort: whether groups that are pruned only in need get gates.
        checkpoint: a file for the state of the run, written every `checkpoint_every` steps.
        resume: go on from the checkpoint where there is one; the run ends in the same gates as one never stopped.
        seed: fixes all that is random.
        progress: show a bar with loss and FLOPs, or call this function.

    Raises:
        FxpruneError: data or settings cannot be used; the loss became NaN or infinite (the last checkpoint is whole).
    """
    settings = Settings(
        flops=float(flops),
        price="FLOPs" if graph.latency is None else "time",
        epochs=epochs,
        start=start if isinstance(start, str) else "a function",
        lr=lr,
        train_weights=train_weights,
        weight_lr=weight_lr,
        temperature=temperature,
        last_resort=last_resort,
        seed=seed,
        weights=digest(graph.module),
    )
    with preserve_rng_state(), make_accelerator() as accelerator, shown(progress, accelerator.is_main_process) as show:
        torch.manual_seed(seed)
        gated = insert_gates(graph, last_resort=last_resort)
        # The first of the first epoch, the same in every process.
        walk = (batch for _, batch in Shards(data, seed=seed).epoch(0))
        # Batches of other shapes do not make one: what is not scored on samples is judged on those of the first.
        first = calibration_batch(walk, _PARTS * _PART) if start in FROM_DATA else next(walk)
        orders = _orders(graph, start, first, seed)
        shards = Shards(data, accelerator.process_index, accelerator.num_processes, seed=seed)
        steps = len(shards) * epochs
        run = Run(accelerator, graph, gated, settings, steps, first.rows(0, _COMPARED))
        run.start_from(orders)
        if checkpoint is not None and resume and Path(checkpoint).exists():
            run.restore(checkpoint)
        for epoch in range(run.step // max(len(shards), 1), epochs):
            for _, batch in shards.epoch(epoch, run.step - epoch * len(shards)):
                loss, left = run.train(batch)
                if not math.isfinite(loss):
                    kept = f"; the state before is in {str(checkpoint)!r}" if checkpoint is not None else ""
                    raise FxpruneError(
                        f"the loss became {loss} at step {run.step + 1} of learning gates{kept}: "
                        "lower lr or weight_lr, or look for outliers in the data"
                    )
                show("learning gates", run.step, steps, {"loss": loss, "FLOPs": left})
                if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == steps):
                    run.save(checkpoint)
        run.choose()
        return run.result()


def _orders(
    graph: ChannelGraph, start: str | Callable[[ChannelGraph], Scores], samples: Batch, seed: int
) -> list[Scores]:
    """The scores that a criterion gives: where it reads data, those on each part of the samples, and their mean."""
    if start not in FROM_DATA:
        return [scores(graph, start, seed=seed)]
    parts = [part for part in samples.split(_PART) if part.size == _PART] or [samples]
    found = [scores(graph, start, data=part, seed=seed) for part in parts]
    return found if len(found) == 1 else [*found, np.mean(found, axis=0)]

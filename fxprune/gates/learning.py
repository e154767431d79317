"""Learn the gates: the task's loss plus FLOPs-aware regularisation; a step of it is in `fxprune.gates.run`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch, calibration_batch
from fxprune.errors import FxpruneError
from fxprune.gates.gating import insert_gates
from fxprune.gates.orders import PART, orders_of, with_blocks
from fxprune.gates.run import Gates, Run, Settings
from fxprune.planning.budgets import Request, as_patterns, flops_target
from fxprune.planning.make import check_reachable, without_ignored
from fxprune.progress import Progress, shown
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.devices import check_values
from fxprune.running.randomness import preserve_rng_state
from fxprune.scoring.criteria import FROM_DATA
from fxprune.training.runs import digest, make_accelerator
from fxprune.training.sharding import Shards

__all__ = ["learn_gates"]

# None of the constants in this module is tuned, nor are the defaults of `learn_gates`.
# A criterion that reads data scores on so many parts of it.
_PARTS = 4
# Sets of gates are compared on so many samples.
_COMPARED = 1024


@keep_freed_memory()
def learn_gates(
    graph: ChannelGraph,
    data: Any,
    *,
    flops: float | None = None,
    epochs: int = 1,
    start: str | Callable[[ChannelGraph], Scores] = "surgeon",
    lr: float = 0.01,
    train_weights: bool = True,
    weight_lr: float = 0.01,
    temperature: float = 1.0,
    last_resort: bool = False,
    depth: bool = False,
    ignore: str | Iterable[str] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 20,
    resume: bool = True,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Gates:
    """Learn which channels to keep, by gates that a Dagger module (arXiv 2010.15041) computes from the weights.

    The loss is the task's (cross-entropy if the data has labels, else distillation from the ungated model) plus the
    FLOPs of the open gates, with a weight that balances the two. Gates are 0 or 1 all along (straight-through). They
    start open, in the order of a criterion; the target falls linearly from the whole model to the budget over the first
    part of the run. The open gates meet the target at every step; only where a group would be emptied, its best gate
    stays open all the same.

    In the end three sets of gates at the budget are compared: those of the start, the learned ones and those halfway
    between. Each is compensated on a quarter of some samples (if weights are trained) and judged on the others by the
    distance of its outputs from the model's; the nearest is kept. The order to start in is chosen in the same way.

    Args:
        graph: the analysed model; neither it nor its module is changed.
        data: a DataLoader or any iterable of batches that can be walked again, see `fxprune.data`.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs per sample. Default: half.
            If `fxprune.time_channels` measured the graph, the same fraction of the model's time.
        epochs: passes over the data.
        start: the criterion that orders the gates at the start, as for `fxprune.scores`. One that reads data scores on
            the first 2,048 samples in four parts; the four orders and that of their mean are compared. All comparisons
            are on the first 1,024 samples, or, if the criterion reads no data, on the first batch.
        lr: learning rate of each gate's own bias, falling to zero by a cosine; what the gates of a group share learns
            at a sixteenth of it. The logits of the start have a range of 4: in few steps only gates near the threshold
            change sides. From a poor order, such as "random", 0.1 gets further.
        train_weights: train the weights along with the gates (SGD at `weight_lr`), so that a channel counts for no more
            than the others cannot make up for. Otherwise weights are frozen. BatchNorm sees only each process's part of
            a batch: without it, or with frozen weights, several processes end with the same gates as one.
        weight_lr: learning rate of the weights.
        temperature: of the distillation.
        last_resort: whether the groups that are pruned only as a last resort get gates.
        depth: whether blocks get gates, one each, that are learned with the others: give `Gates.closed` to `make_plan`
            as `without`. They start where the loss without each puts them, or all above the channels.
        ignore: names or glob patterns of modules whose channels and blocks get no gates: give them to `make_plan` too.
        checkpoint: a file for the state of the run, written every `checkpoint_every` steps.
        checkpoint_every: steps between two writes of the checkpoint.
        resume: go on from the checkpoint if there is one; the run ends with the same gates as one never stopped.
        seed: fixes all that is random.
        progress: show a bar with loss and FLOPs, or call this function.

    Raises:
        FxpruneError: data or settings cannot be used, the budget cannot be met, or the loss became NaN or infinite (the
            last checkpoint is good).
    """
    check_values("learn_gates", graph.module)
    patterns = as_patterns(ignore)
    settings = Settings(
        budget=_budget(graph, Request(flops, ignore=patterns, depth=depth)),
        price="FLOPs" if graph.latency is None else "time",
        epochs=epochs,
        start=start if isinstance(start, str) else "a function",
        lr=lr,
        train_weights=train_weights,
        weight_lr=weight_lr,
        temperature=temperature,
        last_resort=last_resort,
        depth=depth,
        ignore=", ".join(patterns),
        seed=seed,
        weights=digest(graph.module),
    )
    graph = without_ignored(graph, patterns)
    with preserve_rng_state(), make_accelerator() as accelerator, shown(progress, accelerator.is_main_process) as show:
        torch.manual_seed(seed)
        gated = insert_gates(graph, last_resort=last_resort, depth=depth)
        samples = _first_samples(data, start, seed)
        orders = orders_of(graph, start, samples, seed)
        if depth and graph.blocks:
            orders = with_blocks(graph, orders, start, samples)
        shards = Shards(data, accelerator.process_index, accelerator.num_processes, seed=seed)
        steps = len(shards) * epochs
        compared = samples.rows(0, _COMPARED).on_device_of(graph.module)
        run = Run(accelerator, graph, gated, settings, steps, compared)
        run.start_from(orders)
        if checkpoint is not None and resume and Path(checkpoint).exists():
            run.restore(checkpoint)
        for epoch in range(run.step // max(len(shards), 1), epochs):
            for _, batch in shards.epoch(epoch, run.step - epoch * len(shards)):
                loss, left = run.train(batch)
                if not math.isfinite(loss):
                    raise _diverged(loss, run.step + 1, checkpoint)
                show("learning gates", run.step, steps, {"loss": loss, "FLOPs": left})
                if checkpoint is not None and (run.step % checkpoint_every == 0 or run.step == steps):
                    run.save(checkpoint)
        run.choose()
        return run.result()


def _budget(graph: ChannelGraph, request: Request) -> int:
    """The most that open gates may cost: FLOPs, or time where that was measured.

    Raises:
        FxpruneError: not a budget, or no plan can meet it.
    """
    most = flops_target(graph, request)
    if graph.latency is None:
        check_reachable(graph, request)
        return min(most, graph.flops.total)
    share = min(most / max(graph.flops.total, 1), 1.0)
    check_reachable(graph, replace(request, flops=1.0, latency=share))
    return math.floor(share * graph.latency.total)


def _first_samples(data: Any, start: object, seed: int) -> Batch:
    """The samples for scoring and comparing: the first of the first epoch, the same in every process."""
    batches = (batch for _, batch in Shards(data, seed=seed).epoch(0))
    # The data may have batches of several shapes, which cannot be joined: scores that read no data need only one.
    return calibration_batch(batches, _PARTS * PART) if start in FROM_DATA else next(batches)


def _diverged(loss: float, step: int, checkpoint: str | Path | None) -> FxpruneError:
    kept = "" if checkpoint is None else f"; the state before is in {str(checkpoint)!r}"
    return FxpruneError(
        f"the loss became {loss} at step {step} of learning gates{kept}: "
        "lower lr or weight_lr, or look for outliers in the data"
    )

"""Fine-tune a model after pruning: a short ordinary loop on Hugging Face Accelerate."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from fxprune.data import Batch
from fxprune.errors import FxpruneError
from fxprune.progress import Progress, shown
from fxprune.provenance import is_compensated
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.devices import check_values
from fxprune.running.randomness import preserve_rng_state
from fxprune.training.runs import digest, frozen, make_accelerator
from fxprune.training.sharding import Shards
from fxprune.training.state import LossFunction, OptimizerChoice, Run, Settings, make_optimizer

__all__ = ["DivergenceError", "Epoch", "finetune"]

Model = TypeVar("Model", bound=nn.Module)

# With fewer samples than this a model that was compensated is trained with care. Not tuned.
_FEW = 1000


class DivergenceError(FxpruneError):
    """The loss became NaN or infinite.

    Attributes:
        model: a copy of the model with the weights of the last good epoch.
    """

    def __init__(self, message: str, model: nn.Module) -> None:
        super().__init__(message)
        self.model = model


@dataclass(frozen=True)
class Epoch:
    """What happened in an epoch.

    Attributes:
        number: from 1.
        loss: mean over its updates.
        lr: learning rate of the last update.
        seconds: how long it took.
        evaluation: what `evaluate` returned.
    """

    number: int
    loss: float
    lr: float
    seconds: float
    evaluation: float | None = None


@keep_freed_memory()
def finetune(
    pruned: Model,
    data: Any,
    *,
    teacher: nn.Module | None = None,
    loss: LossFunction | None = None,
    epochs: int = 1,
    lr: float | None = None,
    optimizer: OptimizerChoice = "sgd",
    schedule: str = "cosine",
    warmup: float = 0.0,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    temperature: float = 2.0,
    distill_weight: float = 0.5,
    batch_norm: Literal["auto", "train", "freeze"] = "auto",
    mixed_precision: str | None = None,
    gradient_accumulation: int = 1,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool | Progress = True,
    evaluate: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Model:
    """Train a model for a few epochs: on labels, by knowledge distillation from a teacher, or by both.

    The defaults are careful with a model that `fxprune.compensate` has corrected if there are fewer than 1,000 samples:
    with others, training on so few undoes the correction (tests/benchmarks/recovery.py).

    Under ``accelerate launch`` the same call runs on several devices and machines. A batch of `data` is the global
    batch, and each process takes its part of it: the number of processes does not change what is learned, apart from
    BatchNorm statistics, which each process takes from its own part.

    Args:
        pruned: the model; not changed.
        data: a DataLoader or any re-iterable of batches, see `fxprune.data`.
        teacher: a model to imitate, usually the one before pruning; not changed. Needed if the data has no labels.
        loss: of outputs and labels; default: cross-entropy of the main output.
        epochs: passes over the data.
        lr: highest learning rate; default: 0.01 for "sgd", 0.0001 for "adamw", a tenth of that with care (see
            above); for a function what it sets.
        optimizer: "sgd" (momentum 0.9, Nesterov), "adamw", or a function from parameter groups to an optimizer.
        schedule: "cosine" (to zero at the end) or "constant".
        warmup: epochs, or a part of one, in which the learning rate rises from zero.
        weight_decay: of tensors with two or more dimensions, not of biases and norms.
        label_smoothing: of the cross-entropy.
        temperature: of the distillation.
        distill_weight: weight of the distillation in the loss, from 0 to 1, where there are labels too.
        batch_norm: of BatchNorm modules: "train" for statistics that follow the batches, "freeze" for those that the
            model has, which are then also used in training; "auto" freezes them with care (see above).
        mixed_precision: "no", "fp16" or "bf16"; default: what ``accelerate launch`` says.
        gradient_accumulation: batches per update.
        checkpoint: a file for the state of the run, written after each epoch.
        checkpoint_every: also write it every so many updates.
        resume: continue from the checkpoint if there is one; the run ends with the weights of one that never stopped.
        seed: of everything random.
        progress: True shows a bar with loss and learning rate, False nothing; a function is called instead.
        evaluate: a function of the model, called after each epoch in every process, in eval mode and without gradients;
            its result goes into the `Epoch`.
        on_epoch: called with an `Epoch` after each epoch.

    Returns:
        A trained copy of the model, on the device of the original and in its mode.

    Raises:
        FxpruneError: data or settings cannot be used, or the checkpoint is of another run.
        DivergenceError: the loss became NaN or infinite; the error has the last good model.
    """
    check_values("finetune", pruned, *([] if teacher is None else [teacher]))
    settings = Settings(
        epochs=epochs,
        lr=lr,
        optimizer=optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "own"),
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        temperature=temperature,
        distill_weight=distill_weight,
        gradient_accumulation=gradient_accumulation,
        seed=seed,
        distilled=teacher is not None,
        careful=False,
        batch_norm=batch_norm,
        weights=digest(pruned),
    )
    with (
        preserve_rng_state(),
        make_accelerator(mixed_precision) as accelerator,
        shown(progress, accelerator.is_main_process) as show,
    ):
        shards = Shards(data, accelerator.process_index, accelerator.num_processes, seed=seed)
        careful = is_compensated(pruned) and shards.has_fewer_than(_FEW)
        settings = replace(settings, careful=careful)
        model = copy.deepcopy(pruned)
        update = make_optimizer(model, optimizer, settings)
        model, update = accelerator.prepare(model, update)
        run = Run(accelerator, settings, model, update, frozen(teacher, accelerator.device), loss)
        if checkpoint is not None and resume and Path(checkpoint).exists():
            run.restore(checkpoint)
        good = run.weights(clone=True)
        every = checkpoint_every or math.inf
        updates = math.ceil(len(shards) / gradient_accumulation)
        for number in range(run.epoch, epochs):
            began = time.perf_counter()
            for batches in _groups(shards.epoch(number, run.update * gradient_accumulation), gradient_accumulation):
                rate = run.set_rate(number * updates + run.update, updates)
                value = run.step(batches)
                if not math.isfinite(value):
                    raise _diverged(value, number, run.update, rate, _with_weights(pruned, good), checkpoint)
                done = number * updates + run.update
                show("fine-tuning", done, epochs * updates, {"loss": run.mean_loss, "lr": rate})
                if checkpoint is not None and run.update % every == 0:
                    run.save(checkpoint)
            if not run.is_finite():
                raise _diverged(math.nan, number, run.update, run.rate, _with_weights(pruned, good), checkpoint)
            evaluation = None if evaluate is None else run.evaluate(evaluate)
            record = Epoch(number + 1, run.mean_loss, run.rate, time.perf_counter() - began, evaluation)
            run.end_epoch()
            good = run.weights(clone=True)
            if checkpoint is not None:
                run.save(checkpoint)
            if on_epoch is not None:
                on_epoch(record)
        return _with_weights(pruned, run.weights())


def _groups(batches: Iterator[tuple[int, Batch]], size: int) -> Iterator[list[Batch]]:
    while group := [batch for _, batch in itertools.islice(batches, size)]:
        yield group


def _with_weights(model: Model, weights: Mapping[str, Any]) -> Model:
    """A copy of the model with other weights."""
    result = copy.deepcopy(model)
    result.load_state_dict(weights)
    return result


def _diverged(
    value: float, epoch: int, update: int, rate: float, model: nn.Module, checkpoint: str | Path | None
) -> DivergenceError:
    kept = f"the end of epoch {epoch}" if epoch else "the start"
    where = f", and so has the checkpoint {str(checkpoint)!r}" if checkpoint is not None and epoch else ""
    return DivergenceError(
        f"the loss became {value} in epoch {epoch + 1} after {update} updates, at learning rate {rate:.3g}: "
        f"the error's `model` has the weights of {kept}{where}; lower `lr`, or give it a `warmup`",
        model,
    )

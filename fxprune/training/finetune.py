"""Fine-tune a model after pruning: a short ordinary loop on Hugging Face Accelerate."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fxprune.data import Batch, check_labels, run_model
from fxprune.errors import FxpruneError
from fxprune.losses import class_loss, distillation_loss, number_of_classes
from fxprune.progress import Progress, shown
from fxprune.randomness import own_randomness
from fxprune.training.runs import digest, frozen, make_accelerator
from fxprune.training.sharding import Shards
from fxprune.training.snapshots import load_run, save_snapshot

__all__ = ["DivergenceError", "Epoch", "finetune"]

Model = TypeVar("Model", bound=nn.Module)
_RATES = {"sgd": 0.01, "adamw": 1e-4}


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
        loss: the mean over its updates.
        lr: the last learning rate.
        seconds: how long it took.
        evaluation: what `evaluate` gave.
    """

    number: int
    loss: float
    lr: float
    seconds: float
    evaluation: float | None = None


def finetune(
    pruned: Model,
    data: Any,
    *,
    teacher: nn.Module | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    epochs: int = 1,
    lr: float | None = None,
    optimizer: str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = "sgd",
    schedule: str = "cosine",
    warmup: float = 0.0,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    temperature: float = 2.0,
    distill_weight: float = 0.5,
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
    """Train a model for a few epochs, on labels, on the outputs of a teacher, or on both.

    Under ``accelerate launch`` the same call runs on several devices and machines. A batch of `data` is the batch of
    all processes together, of which each takes its part: the number of processes does not change what is learned
    (statistics of BatchNorm are those of each process's part).

    Args:
        pruned: the model; it is not changed.
        data: a DataLoader or any re-iterable of batches, see `fxprune.data`.
        teacher: a model whose outputs are to be reached, most often the one before pruning; it is not changed. Without
            labels it is needed.
        loss: of outputs and labels; default: cross-entropy of the main output.
        epochs: passes over the data.
        lr: highest learning rate; default 0.01 for "sgd", 0.0001 for "adamw", for a callable what it sets.
        optimizer: "sgd" (momentum 0.9, Nesterov), "adamw", or a function from parameter groups to an optimizer.
        schedule: "cosine" (to zero at the end) or "constant".
        warmup: epochs, or a part of one, in which the learning rate rises from zero.
        weight_decay: of tensors with two or more dimensions; biases and norms are not decayed.
        label_smoothing: of the cross-entropy.
        temperature: of the distillation.
        distill_weight: the teacher's share in the loss, from 0 to 1, where there are labels too.
        mixed_precision: "no", "fp16" or "bf16"; default: what ``accelerate launch`` says.
        gradient_accumulation: batches per update.
        checkpoint: a file that the state of the run is written to after each epoch.
        checkpoint_every: write it every so many updates as well.
        resume: go on from the checkpoint where there is one; the run ends in the same weights as one never stopped.
        seed: fixes all that is random.
        progress: show a bar with loss and learning rate, or call this function.
        evaluate: called with the model, in eval mode and without gradients, after each epoch, in every process; its
            number is recorded.
        on_epoch: called with an `Epoch` after each.

    Returns:
        A trained copy of the model, on the device of the original and in its mode.

    Raises:
        FxpruneError: data or settings cannot be used, or the checkpoint is of another run.
        DivergenceError: the loss became NaN or infinite; the error carries the last good model.
    """
    settings = _Settings(
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
        weights=digest(pruned),
    )
    with (
        own_randomness(),
        make_accelerator(mixed_precision) as accelerator,
        shown(progress, accelerator.is_main_process) as show,
    ):
        shards = Shards(data, accelerator.process_index, accelerator.num_processes, seed=seed)
        model = copy.deepcopy(pruned).train()
        update = _optimizer(model, optimizer, settings)
        model, update = accelerator.prepare(model, update)
        run = _Run(accelerator, settings, model, update, frozen(teacher, accelerator.device), loss)
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


@dataclass(frozen=True)
class _Settings:
    """What a run depends on: a checkpoint serves only a run with the same."""

    epochs: int
    lr: float | None
    optimizer: str
    schedule: str
    warmup: float
    weight_decay: float
    label_smoothing: float
    temperature: float
    distill_weight: float
    gradient_accumulation: int
    seed: int
    distilled: bool
    weights: str

    def __post_init__(self) -> None:
        positive = ("epochs", "gradient_accumulation", "temperature")
        for name in (*positive, "lr", "warmup", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not (value > 0 if name in positive else value >= 0):
                raise FxpruneError(f"{name} (={value}) must be {'positive' if name in positive else 'at least 0'}")
        for name in ("label_smoothing", "distill_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise FxpruneError(f"{name} (={getattr(self, name)}) must be from 0 to 1")
        if self.schedule not in ("cosine", "constant"):
            raise FxpruneError(f"schedule (={self.schedule!r}) is not known: use 'cosine' or 'constant'")


class _Run:
    """The state of a run, and one step of it."""

    def __init__(
        self,
        accelerator: Any,
        settings: _Settings,
        model: nn.Module,
        optimizer: Any,
        teacher: nn.Module | None,
        loss: Callable[[Any, Tensor], Tensor] | None,
    ) -> None:
        self.accelerator, self.settings = accelerator, settings
        self.model, self.optimizer, self.teacher, self.loss = model, optimizer, teacher, loss
        self.highest = [group["lr"] for group in optimizer.param_groups]
        self.epoch, self.update, self.total = 0, 0, 0.0
        self.rate: float = self.highest[0]

    @property
    def mean_loss(self) -> float:
        """Over the epoch so far."""
        return self.total / max(self.update, 1)

    def set_rate(self, done: int, updates: int) -> float:
        """Set the learning rate by how many updates are done, of so many an epoch."""
        warm = round(self.settings.warmup * updates)
        if done < warm:
            factor = (done + 1) / (warm + 1)
        elif self.settings.schedule == "constant":
            factor = 1.0
        else:
            factor = 0.5 + 0.5 * math.cos(math.pi * (done - warm) / max(self.settings.epochs * updates - warm, 1))
        for group, highest in zip(self.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = highest * factor
        self.rate = self.highest[0] * factor
        return self.rate

    def step(self, batches: list[Batch]) -> float:
        """One update by the mean loss over all samples of these batches, in all processes; returns that loss."""
        device, processes = self.accelerator.device, self.accelerator.num_processes
        here = torch.tensor(float(sum(batch.size for batch in batches)), device=device)
        everywhere = self.accelerator.reduce(here, "sum")
        total = torch.zeros((), device=device)
        for batch in batches:
            # Gradients are averaged over processes once, with the last batch.
            last = batch is batches[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                part = self._loss(batch) * (batch.size * processes / everywhere)
                self.accelerator.backward(part)
                total += part.detach()
        value = float(self.accelerator.reduce(total, "mean"))
        if math.isfinite(value):
            self.optimizer.step()
            self.total += value
            self.update += 1
        self.optimizer.zero_grad()
        return value

    def _loss(self, batch: Batch) -> Tensor:
        there = batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            outputs = run_model(self.model, there)
            labelled = None
            if there.labels is not None and self.loss is not None:
                labelled = self.loss(outputs, there.labels)
            elif there.labels is not None:
                # On the batch as it came: asking a GPU for its labels would wait for it.
                check_labels(batch, number_of_classes(outputs), self.update)
                labelled = class_loss(outputs, there.labels, self.settings.label_smoothing)
            if self.teacher is None:
                if labelled is None:
                    raise FxpruneError(
                        "data has no labels and there is no teacher: give (inputs, labels), or teacher=model"
                    )
                return labelled
            with torch.no_grad():
                wanted = run_model(self.teacher, there)
            distilled = distillation_loss(outputs, wanted, self.settings.temperature)
        share = 1.0 if labelled is None else self.settings.distill_weight
        return distilled * share if labelled is None else labelled * (1 - share) + distilled * share

    def evaluate(self, function: Callable[[nn.Module], float]) -> float:
        """Call a function on the model in eval mode, without gradients."""
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.no_grad():
            value = float(function(model))
        model.train()
        return value

    def end_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.update, self.total = self.epoch + 1, 0, 0.0

    def weights(self, clone: bool = False) -> dict[str, Any]:
        """The model's `state_dict`."""
        state = self.accelerator.unwrap_model(self.model).state_dict()
        return {name: value.clone() if clone and isinstance(value, Tensor) else value for name, value in state.items()}

    def is_finite(self) -> bool:
        """Whether all weights are: the last update of an epoch is seen by no loss."""
        floats = [value for value in self.weights().values() if isinstance(value, Tensor) and value.is_floating_point()]
        return all(bool(value.isfinite().all()) for value in floats)

    def save(self, path: str | Path) -> None:
        """Write a snapshot, in the main process; the others wait."""
        scaler = self.accelerator.scaler
        if self.accelerator.is_main_process:
            state = {
                "settings": asdict(self.settings),
                "epoch": self.epoch,
                "update": self.update,
                "total": self.total,
                "model": self.weights(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            save_snapshot(path, state)
        self.accelerator.wait_for_everyone()

    def restore(self, path: str | Path) -> None:
        """Go on from a snapshot.

        Raises:
            FxpruneError: it is of a run with other settings.
        """
        state = load_run(path, asdict(self.settings))
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.update, self.total = state["epoch"], state["update"], state["total"]


def _optimizer(model: nn.Module, choice: Any, settings: _Settings) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise FxpruneError(f"{type(model).__name__} has no parameter that requires a gradient: nothing can be trained")
    # BatchNorm makes the scale of a weight free, but not its own: decaying norms and biases only harms.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(choice, str) and choice not in _RATES:
        raise FxpruneError(
            f"optimizer (={choice!r}) is not known: use 'sgd', 'adamw' or a function of parameter groups"
        )
    if not isinstance(choice, str):
        made: torch.optim.Optimizer = choice(groups)
        for group in made.param_groups if settings.lr is not None else ():
            group["lr"] = settings.lr
        return made
    lr = _RATES[choice] if settings.lr is None else settings.lr
    if choice == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


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

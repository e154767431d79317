"""The state of a fine-tuning run: its settings, one update, its snapshots."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.data import Batch, check_labels, run_model
from fxprune.errors import FxpruneError
from fxprune.losses import as_class_scores, class_loss, distillation_loss, number_of_classes, separated
from fxprune.training.snapshots import restore_run, save_run

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LossFunction", "OptimizerChoice", "Run", "Settings", "make_optimizer"]

LossFunction: TypeAlias = Callable[[Any, Tensor], Tensor]
"""From the outputs of a model and the labels of a batch to a loss."""

OptimizerChoice: TypeAlias = str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""The name of an optimizer, or a function that makes one for some parameter groups."""

# Default learning rates, and what part of them is taken with care. Not tuned.
_RATES, _CAREFUL = {"sgd": 0.01, "adamw": 1e-4}, 0.1


@dataclass(frozen=True)
class Settings:
    """What a run depends on: only a run with the same settings can continue from a checkpoint."""

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
    careful: bool
    batch_norm: str
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
        for name, known in (("schedule", ("cosine", "constant")), ("batch_norm", ("auto", "train", "freeze"))):
            if getattr(self, name) not in known:
                names = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
                raise FxpruneError(f"{name} (={getattr(self, name)!r}) is not known: use {names}")


class Run:
    """The state of a run, and one step of it."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: Settings,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        teacher: nn.Module | None,
        loss: LossFunction | None,
    ) -> None:
        self.accelerator, self.settings = accelerator, settings
        self.model, self.optimizer, self.teacher, self.loss = model, optimizer, teacher, loss
        self.highest = [group["lr"] for group in optimizer.param_groups]
        self.epoch, self.update, self.total = 0, 0, 0.0
        self.rate: float = self.highest[0]
        self._train()

    def _train(self) -> None:
        """Set the model to training, but BatchNorms that keep their statistics to eval."""
        self.model.train()
        if self.settings.batch_norm == "freeze" or (self.settings.batch_norm == "auto" and self.settings.careful):
            for module in self.model.modules():
                if isinstance(module, _NormBase):
                    module.eval()

    @property
    def mean_loss(self) -> float:
        """Over the epoch so far."""
        return self.total / max(self.update, 1)

    def set_rate(self, done: int, updates: int) -> float:
        """Set the learning rate after `done` updates, of `updates` in each epoch, and return it."""
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
        """One update by the mean loss over all samples of these batches in all processes; returns that loss.

        A loss that is not finite changes nothing.
        """
        device, processes = self.accelerator.device, self.accelerator.num_processes
        here = torch.tensor(float(sum(batch.size for batch in batches)), device=device)
        everywhere = self.accelerator.reduce(here, "sum")
        total = torch.zeros((), device=device)
        for batch in batches:
            # Processes exchange gradients once, with the last batch.
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
            graph, outputs = self.accelerator.unwrap_model(self.model), run_model(self.model, there)
            labelled = None
            if there.labels is not None and self.loss is not None:
                labelled = self.loss(outputs, there.labels)
            elif there.labels is not None:
                # On the labels before they went to the device: reading them back from a GPU would wait for it.
                check_labels(batch, number_of_classes(outputs), self.update)
                labelled = class_loss(as_class_scores(graph, outputs), there.labels, self.settings.label_smoothing)
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = run_model(self.teacher, there)
                mine, theirs = (separated(graph, side) for side in (outputs, wanted))
                distilled = distillation_loss(mine, theirs, self.settings.temperature)
                share = self.settings.distill_weight
                return distilled if labelled is None else labelled * (1 - share) + distilled * share
        if labelled is None:
            raise FxpruneError("data has no labels and there is no teacher: give (inputs, labels), or teacher=model")
        return labelled

    def evaluate(self, function: Callable[[nn.Module], float]) -> float:
        """Call a function on the model in eval mode, without gradients."""
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.no_grad():
            value = float(function(model))
        self._train()
        return value

    def end_epoch(self) -> None:
        """Start to count for the next epoch."""
        self.epoch, self.update, self.total = self.epoch + 1, 0, 0.0

    def weights(self, clone: bool = False) -> dict[str, Any]:
        """The model's `state_dict`."""
        state = self.accelerator.unwrap_model(self.model).state_dict()
        return {name: value.clone() if clone and isinstance(value, Tensor) else value for name, value in state.items()}

    def is_finite(self) -> bool:
        """Whether all weights are finite: no loss shows what the last update of an epoch did."""
        floats = [value for value in self.weights().values() if isinstance(value, Tensor) and value.is_floating_point()]
        return all(bool(value.isfinite().all()) for value in floats)

    def save(self, path: str | Path) -> None:
        """Write a snapshot, in the main process; the others wait."""
        progress = {"epoch": self.epoch, "update": self.update, "total": self.total}
        save_run(path, self.accelerator, asdict(self.settings), self.model, [self.optimizer], progress)

    def restore(self, path: str | Path) -> None:
        """Continue from a snapshot.

        Raises:
            FxpruneError: it is of a run with other settings.
        """
        found = restore_run(path, self.accelerator, asdict(self.settings), self.model, [self.optimizer])
        self.epoch, self.update, self.total = found["epoch"], found["update"], found["total"]


def make_optimizer(model: nn.Module, choice: OptimizerChoice, settings: Settings) -> torch.optim.Optimizer:
    """An optimizer for the parameters of a model that require gradients.

    Raises:
        FxpruneError: there are none, or the name is not known.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise FxpruneError(f"{type(model).__name__} has no parameter that requires a gradient: nothing can be trained")
    # Weight decay acts on weights alone: on norms and biases it only harms.
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
        made = choice(groups)
        for group in made.param_groups if settings.lr is not None else ():
            group["lr"] = settings.lr
        return made
    lr = _RATES[choice] * (_CAREFUL if settings.careful else 1.0) if settings.lr is None else settings.lr
    if choice == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)

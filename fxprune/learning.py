"""Learn the gates: task loss plus FLOPs-aware regularisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph
from fxprune.criteria import Scores, scores
from fxprune.dagger import Dagger, Join, flops_penalty
from fxprune.data import Batch, check_labels, run_model
from fxprune.errors import FxpruneError
from fxprune.gating import dagger_inputs, gate_logits, gated_groups, insert_gates
from fxprune.losses import class_loss, distillation_loss, number_of_classes
from fxprune.polynomial import Polynomial
from fxprune.progress import Progress
from fxprune.sharding import Shards, own_randomness
from fxprune.snapshots import load_run, save_snapshot
from fxprune.training import digest, frozen, make_accelerator, shown

__all__ = ["Gates", "learn_gates"]

_SPREAD = 4.0
_RAMP = 0.7


@dataclass(frozen=True, eq=False)
class Gates:
    """Learned gates.

    Attributes:
        scores: one number per channel of the graph: the logits, open gates are positive; for `make_plan`.
        module: the gated model, binary gates in place; `fxprune.remove_gates` takes them out.
        flops: FLOPs of the open gates, as a fraction of the model's.
        losses: the task loss of each step.
    """

    scores: Scores
    module: fx.GraphModule
    flops: float
    losses: tuple[float, ...]


def learn_gates(
    graph: ChannelGraph,
    data: Any,
    *,
    flops: float = 0.5,
    epochs: int = 1,
    start: str | Callable[[ChannelGraph], Scores] = "l2",
    lr: float | None = None,
    penalty: float = 4.0,
    train_weights: bool = False,
    weight_lr: float = 1e-3,
    temperature: float = 1.0,
    reluctant: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 20,
    resume: bool = True,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Gates:
    """Learn which channels to keep, with Dagger modules (arXiv 2010.15041) that read the weights.

    The loss is the task's (cross-entropy where the data has labels, else distillation from the ungated model) plus
    `penalty` times `fxprune.dagger.flops_penalty` of the gates. Gates start open; the target falls linearly from the
    whole model to the budget over the first part of the run, and they are binary all along (straight-through).

    Args:
        graph: the analysed model; neither it nor its module is changed.
        data: a DataLoader or any re-iterable of batches, see `fxprune.data`.
        flops: the fraction of the model's FLOPs to reach.
        epochs: passes over the data.
        start: the criterion whose order the gates start in, as for `fxprune.scores`.
        lr: learning rate of the Dagger modules; default: what lets a gate cross all others within the run.
        penalty: weight of the FLOPs regularisation, lambda.
        train_weights: train the weights along with the gates (SGD at `weight_lr`); otherwise they are frozen.
        temperature: of the distillation.
        reluctant: whether groups that are pruned only in need get gates.
        checkpoint: a file for the state of the run, written every `checkpoint_every` steps.
        resume: go on from the checkpoint where there is one; the run ends in the same gates as one never stopped.
        seed: fixes all that is random.
        progress: show a bar with loss and FLOPs, or call this function.

    Raises:
        FxpruneError: data or settings cannot be used; the loss became NaN or infinite (the last checkpoint is whole).
    """
    settings = _Settings(
        flops=float(flops),
        epochs=epochs,
        start=start if isinstance(start, str) else "a function",
        lr=lr,
        penalty=float(penalty),
        train_weights=train_weights,
        weight_lr=weight_lr,
        temperature=temperature,
        reluctant=reluctant,
        seed=seed,
        weights=digest(graph.module),
    )
    with own_randomness(), make_accelerator() as accelerator, shown(progress, accelerator) as show:
        torch.manual_seed(seed)
        gated = insert_gates(graph, reluctant=reluctant)
        _set_order(gated, graph, scores(graph, start), reluctant)
        shards = Shards(data, accelerator.process_index, accelerator.num_processes, seed=seed)
        steps = len(shards) * epochs
        run = _Run(accelerator, graph, gated, settings, steps)
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
        return run.result()


@dataclass(frozen=True)
class _Settings:
    """What a run depends on: a checkpoint serves only a run with the same."""

    flops: float
    epochs: int
    start: str
    lr: float | None
    penalty: float
    train_weights: bool
    weight_lr: float
    temperature: float
    reluctant: bool
    seed: int
    weights: str

    def __post_init__(self) -> None:
        if not 0 < self.flops <= 1:
            raise FxpruneError(f"flops (={self.flops}) must be a fraction in (0, 1] for learning gates")
        for name in ("epochs", "penalty", "weight_lr", "temperature"):
            if not getattr(self, name) > 0:
                raise FxpruneError(f"{name} (={getattr(self, name)}) must be positive")


class _Objective(nn.Module):
    """All that depends on parameters, in one forward, as data-parallel training wants it."""

    def __init__(self, gated: fx.GraphModule, graph: ChannelGraph, settings: _Settings) -> None:
        super().__init__()
        self.gated = gated
        self._graph = graph
        self._polynomial: Polynomial = graph.flops
        self._total = float(graph.flops.total)
        self._settings = settings
        channels = np.concatenate([group.channels for group in gated_groups(graph, settings.reluctant)])
        self.channels: Tensor
        self.register_buffer("channels", torch.from_numpy(channels), persistent=False)

    def forward(self, batch: Batch, wanted: Any, target: float) -> tuple[Tensor, Tensor, Tensor]:
        outputs, given = self._run(batch)
        if batch.labels is not None:
            task = class_loss(outputs, batch.labels)
        else:
            task = distillation_loss(outputs, wanted, self._settings.temperature)
        gates = given.new_ones(self._graph.num_channels).index_copy(0, self.channels, given[:-1])
        left = self._polynomial.differentiable(gates) / self._total
        return task + self._settings.penalty * flops_penalty(left, target), task.detach(), left.detach()

    def _run(self, batch: Batch) -> tuple[Any, Tensor]:
        """The gated model's outputs, and the gates that it used."""
        seen: list[Tensor] = []
        join = next(module for module in self.gated.modules() if isinstance(module, Join))
        hook = join.register_forward_hook(lambda _, __, gates: seen.append(gates))
        try:
            return run_model(self.gated, batch), seen[0]
        finally:
            hook.remove()


class _Run:
    """The state of a run, and one step of it."""

    def __init__(
        self, accelerator: Any, graph: ChannelGraph, gated: fx.GraphModule, settings: _Settings, steps: int
    ) -> None:
        self.accelerator, self.graph, self.settings, self.steps = accelerator, graph, settings, steps
        daggers = [p for module in gated.modules() if isinstance(module, Dagger) for p in module.parameters()]
        mine = {id(p) for p in daggers}
        weights = [p for p in gated.parameters() if id(p) not in mine]
        gated.train(settings.train_weights)
        for parameter in weights:
            parameter.requires_grad_(settings.train_weights and parameter.requires_grad)
        lr = settings.lr if settings.lr is not None else 2 * _SPREAD / max(steps, 1)
        # Many small tensors: one by one they would cost more than they are worth.
        updates: list[torch.optim.Optimizer] = [torch.optim.Adam(daggers, lr=lr, fused=True)]
        if settings.train_weights:
            chosen = [p for p in weights if p.requires_grad]
            updates.append(torch.optim.SGD(chosen, lr=settings.weight_lr, momentum=0.9))
        self.objective, *self.updates = accelerator.prepare(_Objective(gated, graph, settings), *updates)
        if settings.train_weights:
            for module, read in dagger_inputs(gated):
                module.hold(*read)
        self.teacher: Any = frozen(graph.module, accelerator.device)
        self.step = 0
        self.losses: list[float] = []

    def train(self, batch: Batch) -> tuple[float, float]:
        """One update; returns the task loss and the fraction of FLOPs left before it."""
        there = batch.to(self.accelerator.device)
        wanted = None
        with torch.no_grad():
            if batch.labels is None:
                wanted = run_model(self.teacher, there)
            elif self.step == 0:
                check_labels(batch, number_of_classes(run_model(self.teacher, there)))
        ramp = min(1.0, (self.step + 1) / (_RAMP * self.steps))
        target = 1.0 - (1.0 - self.settings.flops) * ramp
        loss, task, left = self.objective(there, wanted, target)
        self.accelerator.backward(loss)
        value = float(self.accelerator.reduce(task, "mean"))
        if math.isfinite(value):
            for update in self.updates:
                update.step()
            self.step += 1
            self.losses.append(value)
        for update in self.updates:
            update.zero_grad()
        return value, float(left)

    def save(self, path: str | Path) -> None:
        """Write a snapshot, in the main process; the others wait."""
        if self.accelerator.is_main_process:
            state = {
                "settings": asdict(self.settings),
                "step": self.step,
                "losses": list(self.losses),
                "model": self.accelerator.unwrap_model(self.objective).state_dict(),
                "updates": [update.state_dict() for update in self.updates],
            }
            save_snapshot(path, state)
        self.accelerator.wait_for_everyone()

    def restore(self, path: str | Path) -> None:
        """Go on from a snapshot.

        Raises:
            FxpruneError: it is of a run with other settings.
        """
        state = load_run(path, asdict(self.settings))
        self.accelerator.unwrap_model(self.objective).load_state_dict(state["model"])
        for update, theirs in zip(self.updates, state["updates"], strict=True):
            update.load_state_dict(theirs)
        self.step, self.losses = state["step"], list(state["losses"])

    def result(self) -> Gates:
        """The learned gates, on the device of the original."""
        gated: fx.GraphModule = self.accelerator.unwrap_model(self.objective).gated
        gated.to(next(iter(self.graph.module.parameters())).device).train(self.graph.module.training)
        with torch.no_grad():
            logits = gate_logits(gated, self.graph, reluctant=self.settings.reluctant).double().cpu()
        left = self.graph.flops((logits > 0).numpy()) / self.graph.flops.total
        finite = logits.clamp(-1e6, 1e6).numpy()
        return Gates(finite, gated, left, tuple(self.losses))


def _set_order(gated: fx.GraphModule, graph: ChannelGraph, order: Scores, reluctant: bool) -> None:
    """Let the open gates start with logits in the order of a criterion, evenly spread."""
    groups = gated_groups(graph, reluctant)
    everything = np.concatenate([group.channels for group in groups])
    ranks = np.empty(graph.num_channels)
    ranks[everything[np.argsort(order[everything], kind="stable")]] = np.arange(1, len(everything) + 1)
    logits = _SPREAD * ranks / len(everything)
    modules = [module for module in gated.modules() if isinstance(module, Dagger)]
    for module, group in zip(modules, groups, strict=True):
        module.open(torch.from_numpy(logits[group.channels]))

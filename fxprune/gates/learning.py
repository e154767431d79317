"""Learn the gates: task loss plus FLOPs-aware regularisation.

The weight of the regularisation is not fixed: at each step it is what balances the pull of the task along the FLOPs
(`fxprune.gates.dagger.flops_balance`), and all logits are then shifted together until the open gates meet the target of
the moment. So the budget is met whatever the scale of the loss, and what is learned is which channels use it best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch, calibration_batch, check_labels, run_model
from fxprune.errors import FxpruneError
from fxprune.gates.choosing import least_lossy
from fxprune.gates.dagger import Dagger, flops_balance, straight_through
from fxprune.gates.gating import dagger_inputs, gate_logits, gated_groups, insert_gates
from fxprune.losses import class_loss, distillation_loss, number_of_classes
from fxprune.progress import Progress, shown
from fxprune.randomness import own_randomness
from fxprune.scoring.criteria import FROM_DATA, scores
from fxprune.training.runs import digest, frozen, make_accelerator
from fxprune.training.sharding import Shards
from fxprune.training.snapshots import load_run, save_snapshot

__all__ = ["Gates", "learn_gates"]

_SPREAD = 4.0
_RAMP = 0.7
# Samples that the start's scores are taken from, where they need data, and that start and end are compared on.
_START_SAMPLES = 512
# A step of a parameter that a group shares moves the logits of all its channels; one of a bias its channel's alone.
_SHARED_RATE = 1 / 16
# The best channel of a group stays open by this much.
_LAST = 1e-3


@dataclass(frozen=True, eq=False)
class Gates:
    """Learned gates.

    Attributes:
        scores: one number per channel of the graph: the logits, open gates are positive; for `make_plan`.
        module: the gated model, binary gates in place; `fxprune.remove_gates` takes them out.
        flops: FLOPs, or time, of the open gates, as a fraction of the model's.
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
    start: str | Callable[[ChannelGraph], Scores] = "surgeon",
    lr: float = 0.01,
    train_weights: bool = True,
    weight_lr: float = 0.01,
    temperature: float = 1.0,
    reluctant: bool = False,
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
    end the gates of the start, at the budget, and the learned ones are compared on samples, each compensated on a
    quarter of them (where weights are trained) and measured by its distance from the model on the others; the nearer
    are kept.

    Args:
        graph: the analysed model; neither it nor its module is changed.
        data: a DataLoader or any re-iterable of batches, see `fxprune.data`.
        flops: the fraction of the model's FLOPs to reach; of its time, where `fxprune.time_channels` measured that.
        epochs: passes over the data.
        start: the criterion whose order the gates start in, as for `fxprune.scores`; one that reads data gets the first
            512 samples. Start and end are compared on these too, or else on the first batch.
        lr: learning rate of each gate's own bias, falling to zero by a cosine; what the gates of a group share gets a
            sixteenth of it. The start spreads logits over a range of 4: in few steps only gates near the threshold
            change sides. From an order that is no good, such as "random", 0.1 gets further.
        train_weights: train the gated model's weights along with the gates (SGD at `weight_lr`), so that channels are
            judged by what the others can make up for. Otherwise they are frozen, and the gates are those of a cut that
            is not repaired. BatchNorm sees the part of the batch that is each process's: only without it, or with
            frozen weights, do several processes end with the gates of one.
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
        price="FLOPs" if graph.latency is None else "time",
        epochs=epochs,
        start=start if isinstance(start, str) else "a function",
        lr=lr,
        train_weights=train_weights,
        weight_lr=weight_lr,
        temperature=temperature,
        reluctant=reluctant,
        seed=seed,
        weights=digest(graph.module),
    )
    with own_randomness(), make_accelerator() as accelerator, shown(progress, accelerator.is_main_process) as show:
        torch.manual_seed(seed)
        gated = insert_gates(graph, reluctant=reluctant)
        # The first of the first epoch, the same in every process.
        walk = (batch for _, batch in Shards(data, seed=seed).epoch(0))
        # Batches of other shapes do not make one: what is not scored on samples is judged on those of the first.
        first = calibration_batch(walk, _START_SAMPLES) if start in FROM_DATA else next(walk)
        order = scores(graph, start, data=first if start in FROM_DATA else None, seed=seed)
        _set_order(gated, graph, order, reluctant)
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
        run.choose(first)
        return run.result()


@dataclass(frozen=True)
class _Settings:
    """What a run depends on: a checkpoint serves only a run with the same."""

    flops: float
    price: str
    epochs: int
    start: str
    lr: float
    train_weights: bool
    weight_lr: float
    temperature: float
    reluctant: bool
    seed: int
    weights: str

    def __post_init__(self) -> None:
        if not 0 < self.flops <= 1:
            raise FxpruneError(f"flops (={self.flops}) must be a fraction in (0, 1] for learning gates")
        for name in ("epochs", "lr", "weight_lr", "temperature"):
            if not getattr(self, name) > 0:
                raise FxpruneError(f"{name} (={getattr(self, name)}) must be positive")


class _Objective(nn.Module):
    """All that depends on parameters, in one forward, as data-parallel training wants it."""

    def __init__(self, gated: fx.GraphModule, settings: _Settings) -> None:
        super().__init__()
        self.gated = gated
        self._temperature = settings.temperature

    def forward(self, batch: Batch, wanted: Any) -> Tensor:
        outputs = run_model(self.gated, batch)
        if batch.labels is not None:
            return class_loss(outputs, batch.labels)
        return distillation_loss(outputs, wanted, self._temperature)


class _Run:
    """The state of a run, and one step of it."""

    def __init__(
        self, accelerator: Any, graph: ChannelGraph, gated: fx.GraphModule, settings: _Settings, steps: int
    ) -> None:
        self.accelerator, self.graph, self.settings, self.steps = accelerator, graph, settings, steps
        daggers = [module for module in gated.modules() if isinstance(module, Dagger)]
        biases = [module.bias for module in daggers]
        shared = [p for module in daggers for p in module.parameters() if p is not module.bias]
        mine = {id(p) for p in (*biases, *shared)}
        weights = [p for p in gated.parameters() if id(p) not in mine]
        gated.train(settings.train_weights)
        for parameter in weights:
            parameter.requires_grad_(settings.train_weights and parameter.requires_grad)
        # Many small tensors: one by one they would cost more than they are worth.
        parts = [{"params": biases, "part": 1.0}, {"params": shared, "part": _SHARED_RATE}]
        updates: list[torch.optim.Optimizer] = [torch.optim.Adam(parts, lr=settings.lr, betas=(0.9, 0.99), fused=True)]
        if settings.train_weights:
            chosen = [p for p in weights if p.requires_grad]
            updates.append(torch.optim.SGD(chosen, lr=settings.weight_lr, momentum=0.9))
        self.objective, *self.updates = accelerator.prepare(_Objective(gated, settings), *updates)
        self.inputs = dagger_inputs(gated)
        if settings.train_weights:
            for module, read in self.inputs:
                module.hold(*read)
        self.teacher: Any = frozen(graph.module, accelerator.device)
        groups = gated_groups(graph, settings.reluctant)
        self.channels = np.concatenate([group.channels for group in groups])
        self.sizes = [len(group) for group in groups]
        self.price, self.total = graph.price, float(graph.price.total)
        self.step = 0
        self.balance = 0.0
        self.losses: list[float] = []
        self.start = [{name: value.clone() for name, value in module.state_dict().items()} for module, _ in self.inputs]
        self.left = self._meet(self._target(0))

    def train(self, batch: Batch) -> tuple[float, float]:
        """One update; returns the task loss and the fraction of FLOPs left after it."""
        there = batch.to(self.accelerator.device)
        wanted = None
        with torch.no_grad():
            if batch.labels is None:
                wanted = run_model(self.teacher, there)
            elif self.step == 0:
                check_labels(batch, number_of_classes(run_model(self.teacher, there)))
        task = self.objective(there, wanted)
        self.accelerator.backward(task)
        value = float(self.accelerator.reduce(task.detach(), "mean"))
        if math.isfinite(value):
            self._regularise()
            rate = self.settings.lr * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps))
            for group in self.updates[0].param_groups:
                group["lr"] = rate * group["part"]
            for update in self.updates:
                update.step()
            self.step += 1
            self.losses.append(value)
            self.left = self._meet(self._target(self.step))
        for update in self.updates:
            update.zero_grad()
        return value, self.left

    def _target(self, step: int) -> float:
        """The fraction of FLOPs to be left at a step."""
        return 1.0 - (1.0 - self.settings.flops) * min(1.0, (step + 1) / (_RAMP * self.steps))

    def _regularise(self) -> None:
        """Add the gradient of the FLOPs, weighted, to the task's."""
        parameters = [parameter for module, _ in self.inputs for parameter in module.parameters()]
        task = torch.cat([module.bias.grad for module, _ in self.inputs])  # type: ignore[misc]
        logits = torch.cat([module(*read) for module, read in self.inputs])
        channels = torch.from_numpy(self.channels).to(logits.device)
        gates = logits.new_ones(self.graph.num_channels).index_copy(0, channels, straight_through(logits))
        left = self.price.differentiable(gates) / self.total
        pull, *pulls = torch.autograd.grad(left, [logits, *parameters])
        # Of one batch alone the balance is noise.
        self.balance += (flops_balance(task, pull) - self.balance) / min(self.step + 1, 10)
        for parameter, by_flops in zip(parameters, pulls, strict=True):
            parameter.grad.add_(by_flops, alpha=self.balance)  # type: ignore[union-attr]

    def _meet(self, target: float) -> float:
        """Shift all logits alike, so that the open gates cost at most a fraction of the FLOPs; returns their cost."""
        with torch.no_grad():
            logits = torch.cat([module(*read) for module, read in self.inputs])
            values = logits.double().cpu().numpy()
            alive = np.ones(self.graph.num_channels, dtype=bool)
            order = np.sort(values)
            low, high = 0, len(order)
            while low < high:
                middle = (low + high) // 2
                alive[self.channels] = values > order[middle]
                fits = self.price(alive) <= target * self.total
                low, high = (low, middle) if fits else (middle + 1, high)
            # Between two logits, so that rounding cannot put one of them on the other side.
            padded = np.concatenate([[order[0] - 2 * _LAST], order, [order[-1] + 2 * _LAST]])
            threshold = float(padded[low + (target < 1) :][:2].mean())
            start = 0
            for (module, _), size in zip(self.inputs, self.sizes, strict=True):
                mine = slice(start, start + size)
                shift = min(threshold, float(values[mine].max()) - _LAST)
                module.bias.sub_(shift)
                alive[self.channels[mine]] = values[mine] > shift
                start += size
        return self.price(alive) / self.total

    def save(self, path: str | Path) -> None:
        """Write a snapshot, in the main process; the others wait."""
        if self.accelerator.is_main_process:
            state = {
                "settings": asdict(self.settings),
                "step": self.step,
                "losses": list(self.losses),
                "balance": self.balance,
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
        self.step, self.losses, self.balance = state["step"], list(state["losses"]), state["balance"]

    def choose(self, samples: Batch) -> None:
        """Go back to the gates of the start, at the budget, where they lose less than the learned ones."""
        learned = [{name: value.clone() for name, value in module.state_dict().items()} for module, _ in self.inputs]
        states = (self.start, learned)
        candidates = []
        for state in states:
            self._go_to(state)
            candidates.append((self._logits() > 0).numpy())
        if (candidates[0] != candidates[1]).any():
            here = samples.to(next(iter(self.graph.module.parameters())).device)
            repaired = self.settings.train_weights
            self._go_to(states[least_lossy(self.graph, candidates, here, repaired=repaired, seed=self.settings.seed)])

    def _go_to(self, state: list[dict[str, Tensor]]) -> None:
        """Take another state of the Dagger modules, and meet the budget with it."""
        for (module, _), values in zip(self.inputs, state, strict=True):
            module.load_state_dict(values)
        self.left = self._meet(self.settings.flops)

    def _logits(self) -> Tensor:
        gated: fx.GraphModule = self.accelerator.unwrap_model(self.objective).gated
        with torch.no_grad():
            return gate_logits(gated, self.graph, reluctant=self.settings.reluctant).double().cpu()

    def result(self) -> Gates:
        """The learned gates, on the device of the original."""
        gated: fx.GraphModule = self.accelerator.unwrap_model(self.objective).gated
        gated.to(next(iter(self.graph.module.parameters())).device).train(self.graph.module.training)
        logits = self._logits()
        left = self.price((logits > 0).numpy()) / self.total
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

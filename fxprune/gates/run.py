"""A run of learning gates: its state, one step of it, and which of several gates are taken in the end.

The weight of the regularisation is not fixed: at each step it is what balances the pull of the task along the FLOPs
(`fxprune.gates.dagger.flops_balance`), and all logits are then shifted together until the open gates meet the target of
the moment. So the budget is met whatever the scale of the loss, and what is learned is which channels use it best.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch, check_labels, run_model
from fxprune.errors import FxpruneError
from fxprune.gates.choosing import least_lossy
from fxprune.gates.dagger import flops_balance, straight_through
from fxprune.gates.gating import dagger_of, descriptions, gate_logits, gated_groups
from fxprune.losses import class_loss, distillation_loss, number_of_classes
from fxprune.training.runs import frozen, of_main_process
from fxprune.training.snapshots import restore_run, save_run

__all__ = ["Gates", "Run", "Settings"]

_SPREAD = 4.0
_RAMP = 0.7
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


@dataclass(frozen=True)
class Settings:
    """What a run depends on: a checkpoint serves only a run with the same."""

    flops: float
    price: str
    epochs: int
    start: str
    lr: float
    train_weights: bool
    weight_lr: float
    temperature: float
    last_resort: bool
    seed: int
    weights: str

    def __post_init__(self) -> None:
        if not 0 < self.flops <= 1:
            raise FxpruneError(f"flops (={self.flops}) must be a fraction in (0, 1] for learning gates")
        for name in ("epochs", "lr", "weight_lr", "temperature"):
            if not getattr(self, name) > 0:
                raise FxpruneError(f"{name} (={getattr(self, name)}) must be positive")


# Of the Dagger module.
_State: TypeAlias = "dict[str, Tensor]"


class _Objective(nn.Module):
    """All that depends on parameters, in one forward, as data-parallel training wants it."""

    def __init__(self, gated: fx.GraphModule, settings: Settings) -> None:
        super().__init__()
        self.gated = gated
        self._temperature = settings.temperature

    def forward(self, batch: Batch, wanted: Any) -> Tensor:
        outputs = run_model(self.gated, batch)
        if batch.labels is not None:
            return class_loss(outputs, batch.labels)
        return distillation_loss(outputs, wanted, self._temperature)


class Run:
    """The state of a run, and one step of it."""

    def __init__(
        self,
        accelerator: Any,
        graph: ChannelGraph,
        gated: fx.GraphModule,
        settings: Settings,
        steps: int,
        samples: Batch,
    ) -> None:
        self.accelerator, self.graph, self.settings, self.steps = accelerator, graph, settings, steps
        self.samples = samples.on_device_of(graph.module)
        self.dagger = dagger_of(gated)
        shared = [p for p in self.dagger.parameters() if p is not self.dagger.bias]
        mine = {id(p) for p in self.dagger.parameters()}
        weights = [p for p in gated.parameters() if id(p) not in mine]
        gated.train(settings.train_weights)
        for parameter in weights:
            parameter.requires_grad_(settings.train_weights and parameter.requires_grad)
        parts = [{"params": [self.dagger.bias], "part": 1.0}, {"params": shared, "part": _SHARED_RATE}]
        updates: list[torch.optim.Optimizer] = [torch.optim.Adam(parts, lr=settings.lr, betas=(0.9, 0.99), fused=True)]
        if settings.train_weights:
            chosen = [p for p in weights if p.requires_grad]
            # Complex weights are updated one by one.
            fused = all(p.is_floating_point() for p in chosen)
            updates.append(torch.optim.SGD(chosen, lr=settings.weight_lr, momentum=0.9, fused=fused))
        self.objective, *self.updates = accelerator.prepare(_Objective(gated, settings), *updates)
        self.descriptions = descriptions(gated)
        if settings.train_weights:
            for module, read in self.descriptions:
                module.hold(*read)
        self.teacher: Any = frozen(graph.module, accelerator.device)
        groups = gated_groups(graph, settings.last_resort)
        self.channels = np.concatenate([group.channels for group in groups])
        self.sizes = [len(group) for group in groups]
        self.price, self.total = graph.price, float(graph.price.total)
        self.step = 0
        self.balance = 0.0
        self.logits = self._read()
        self.losses: list[float] = []
        self.start = self._state()
        self.left = 1.0

    def start_from(self, orders: list[Scores]) -> None:
        """Start from the order, of several, that loses least at the budget."""
        states = [self._in_order(order) for order in orders]
        self.dagger.load_state_dict(self._best_of(states))
        # Scores are not the same in all processes where BatchNorm has seen only their part of the data.
        with torch.no_grad():
            for parameter in self.dagger.parameters():
                parameter.copy_(of_main_process(parameter.detach().clone()))
        self.start = self._state()
        self.left = self._meet(self._target(self.step))

    def train(self, batch: Batch) -> tuple[float, float]:
        """One update; returns the task loss and the fraction of FLOPs left after it."""
        there = batch.to(self.accelerator.device)
        wanted = None
        with torch.no_grad():
            if batch.labels is None:
                wanted = run_model(self.teacher, there)
            elif self.step == 0:
                check_labels(batch, number_of_classes(run_model(self.teacher, there)))
        pull = self._pull().to(self.accelerator.device)
        self.dagger.pull = self.balance * pull
        task = self.objective(there, wanted)
        self.accelerator.backward(task)
        value = float(self.accelerator.reduce(task.detach(), "mean"))
        if math.isfinite(value):
            self._rebalance(pull)
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

    def _read(self) -> npt.NDArray[np.float64]:
        """All logits in a row."""
        with torch.no_grad():
            logits = self.dagger.logits([module(*read) for module, read in self.descriptions])
            return logits.double().cpu().numpy()

    def _pull(self) -> Tensor:
        """The gradient of the fraction of FLOPs left by the logits."""
        alive = np.ones(self.graph.num_channels, dtype=bool)
        alive[self.channels] = self.logits > 0
        by_gates = torch.from_numpy(self.price.marginal(alive)[self.channels] / self.total)
        logits = torch.from_numpy(self.logits).requires_grad_()
        (by_logits,) = torch.autograd.grad(straight_through(logits), logits, by_gates)
        return by_logits.float()

    def _rebalance(self, pull: Tensor) -> None:
        """Weigh the FLOPs for the next step by the gradients of this one, of which they have had their part."""
        task = self.dagger.bias.grad
        assert task is not None
        # Of one batch alone the balance is noise.
        new = flops_balance(task - self.balance * pull, pull)
        self.balance += (new - self.balance) / min(self.step + 1, 10)

    def _meet(self, target: float) -> float:
        """Shift all logits alike, so that the open gates cost at most a fraction of the FLOPs; returns their cost."""
        values = self._read()
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
        starts = np.cumsum([0, *self.sizes[:-1]])
        shifts = np.repeat(np.minimum(threshold, np.maximum.reduceat(values, starts) - _LAST), self.sizes)
        with torch.no_grad():
            self.dagger.bias.sub_(torch.from_numpy(shifts).to(self.dagger.bias))
        self.logits = values - shifts
        alive[self.channels] = self.logits > 0
        return self.price(alive) / self.total

    def save(self, path: str | Path) -> None:
        """Write a snapshot, in the main process; the others wait."""
        logits = torch.from_numpy(self.logits)
        progress = {"step": self.step, "losses": list(self.losses), "balance": self.balance, "logits": logits}
        save_run(path, self.accelerator, asdict(self.settings), self.objective, self.updates, progress)

    def restore(self, path: str | Path) -> None:
        """Go on from a snapshot.

        Raises:
            FxpruneError: it is of a run with other settings.
        """
        found = restore_run(path, self.accelerator, asdict(self.settings), self.objective, self.updates)
        self.step, self.losses, self.balance = found["step"], found["losses"], found["balance"]
        self.logits = found["logits"].numpy()

    def choose(self) -> None:
        """Take the gates of the start, the learned ones or those halfway between them: what loses least."""
        learned, logits = self._state(), []
        for state in (self.start, learned):
            self._go_to(state)
            logits.append(torch.from_numpy(self._read()))
        self.dagger.open((logits[0] + logits[1]) / 2)
        self._go_to(self._best_of([self.start, self._state(), learned]))

    def _best_of(self, states: list[_State]) -> _State:
        """The state of the Dagger module whose gates lose least at the budget, on the samples."""
        candidates = []
        for state in states:
            self._go_to(state)
            candidates.append((self._logits() > 0).numpy())
        # The last of those that are the same.
        several = {alive.tobytes(): number for number, alive in enumerate(candidates)}
        numbers = list(several.values())
        best = numbers[-1]
        if len(numbers) > 1:
            tried = [candidates[number] for number in numbers]
            repaired, seed = self.settings.train_weights, self.settings.seed
            best = numbers[least_lossy(self.graph, tried, self.samples, repaired=repaired, seed=seed)]
        return states[int(of_main_process(torch.tensor(best, device=self.accelerator.device)))]

    def _in_order(self, order: Scores) -> _State:
        """The state in which logits stand in the order of some scores, evenly spread."""
        ranks = np.empty(self.graph.num_channels)
        ranks[self.channels[np.argsort(order[self.channels], kind="stable")]] = np.arange(1, len(self.channels) + 1)
        self.dagger.open(torch.from_numpy(_SPREAD * ranks[self.channels] / len(self.channels)))
        return self._state()

    def _state(self) -> _State:
        return {name: value.clone() for name, value in self.dagger.state_dict().items()}

    def _go_to(self, state: _State) -> None:
        """Take another state of the Dagger module, and meet the budget with it."""
        self.dagger.load_state_dict(state)
        self.left = self._meet(self.settings.flops)

    def _gated(self) -> fx.GraphModule:
        gated: fx.GraphModule = self.accelerator.unwrap_model(self.objective).gated
        return gated

    def _logits(self) -> Tensor:
        with torch.no_grad():
            return gate_logits(self._gated(), self.graph, last_resort=self.settings.last_resort).double().cpu()

    def result(self) -> Gates:
        """The learned gates, on the device of the original."""
        gated = self._gated()
        gated.to(next(iter(self.graph.module.parameters())).device).train(self.graph.module.training)
        logits = self._logits()
        left = self.price((logits > 0).numpy()) / self.total
        finite = logits.clamp(-1e6, 1e6).numpy()
        return Gates(finite, gated, left, tuple(self.losses))

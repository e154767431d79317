"""A run of learning gates: its state, one step of it, and which of several sets of gates it ends with.

The weight of the regularisation is not fixed: at each step it balances the pull of the task along the FLOPs
(`fxprune.gates.cost.flops_balance`), and all logits are then shifted together until the open gates meet the target of
the step. So the budget is met, whatever the scale of the loss, and what is learned is which channels use it best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch, check_labels, run_model
from fxprune.errors import FxpruneError
from fxprune.gates.choosing import least_lossy
from fxprune.gates.cost import cost_of_gates, flops_balance
from fxprune.gates.dagger import Dagger
from fxprune.gates.gating import dagger_of, descriptions, gated_groups
from fxprune.losses import as_class_scores, class_loss, distillation_loss, number_of_classes, separated
from fxprune.training.runs import frozen, of_main_process
from fxprune.training.snapshots import restore_run, save_run

__all__ = ["Gates", "Run", "Settings"]

# None of the constants in this module is tuned.
# The logits of the start are spread evenly over this range.
_RANGE = 4.0
# The target falls to the budget over this part of the run.
_RAMP = 0.7
# The rate of what a group shares, beside that of a bias: a step of it moves the logits of all channels of the group.
_SHARED_RATE = 1 / 16
# Over so many steps the weight of the FLOPs is averaged: from one batch alone it is noise.
_BALANCE_STEPS = 10

_State: TypeAlias = "dict[str, Tensor]"  # of the Dagger module


@dataclass(frozen=True, eq=False)
class Gates:
    """Learned gates.

    Attributes:
        scores: the logits, one per channel and block of the graph, positive where a gate is open; for `make_plan`.
        module: the gated model, its gates 0 or 1; `fxprune.remove_gates` takes them out.
        flops: FLOPs with the open gates, as a fraction of the model's; time, where that was measured.
        losses: the task loss of each step.
        closed: the names of the blocks whose gates are closed, for `make_plan(..., without=)`; the lowest logit first.
    """

    scores: Scores
    module: fx.GraphModule
    flops: float
    losses: tuple[float, ...]
    closed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What a run depends on: a checkpoint is good only for a run with the same."""

    budget: int
    price: str
    epochs: int
    start: str
    lr: float
    train_weights: bool
    weight_lr: float
    temperature: float
    last_resort: bool
    depth: bool
    ignore: str
    seed: int
    weights: str

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "weight_lr", "temperature"):
            if not getattr(self, name) > 0:
                raise FxpruneError(f"{name} (={getattr(self, name)}) must be positive")


class Run:
    """The state of a run, and one step of it.

    Args:
        accelerator: of Hugging Face Accelerate.
        graph: the analysed model.
        gated: the same model with gates; it is trained.
        settings: what the run depends on.
        steps: the number of steps in all.
        samples: sets of gates are compared on them; on the device of the graph's model.
    """

    def __init__(
        self,
        accelerator: Any,
        graph: ChannelGraph,
        gated: fx.GraphModule,
        settings: Settings,
        steps: int,
        samples: Batch,
    ) -> None:
        self.accelerator, self.graph, self.settings = accelerator, graph, settings
        self.steps, self.samples = steps, samples
        self.dagger = dagger_of(gated)
        optimizers = _optimizers(gated, self.dagger, settings)
        self.objective, *self.optimizers = accelerator.prepare(_Objective(gated, settings.temperature), *optimizers)
        # Only now: buffers are other tensors on another device.
        self.descriptions = descriptions(gated)
        if settings.train_weights:
            for description, weights in self.descriptions:
                description.hold(*weights)
        self.teacher: Any = frozen(graph.module, accelerator.device)
        self.blocks = graph.blocks if settings.depth else ()
        self.cost = cost_of_gates(graph, gated_groups(graph, settings.last_resort), self.blocks)
        self.step, self.balance = 0, 0.0
        self.losses: list[float] = []
        self.logits = self._read_logits()
        self.start = self._state()

    # --- one step ---

    def train(self, batch: Batch) -> tuple[float, float]:
        """One update; returns the task loss, and the cost of the gates after the update as a fraction of the total."""
        there = batch.to(self.accelerator.device)
        wanted = self._wanted(batch, there)
        pull = self.cost.gradient(self.logits).to(self.accelerator.device)
        self.dagger.pull = self.balance * pull
        task = self.objective(there, wanted)
        self.accelerator.backward(task)
        value = float(self.accelerator.reduce(task.detach(), "mean"))
        if math.isfinite(value):
            self._rebalance(pull)
            self._set_rates()
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            self.losses.append(value)
            self._meet(self._target(self.step))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return value, self.cost.fraction(self.logits)

    def _wanted(self, batch: Batch, there: Batch) -> Any:
        """What the ungated model gives for a batch without labels; the labels of the first batch are checked."""
        with torch.no_grad():
            if batch.labels is None:
                return run_model(self.teacher, there)
            if self.step == 0:
                check_labels(batch, number_of_classes(run_model(self.teacher, there)))
        return None

    def _rebalance(self, pull: Tensor) -> None:
        """Weigh the FLOPs for the next step by the gradients of this one, in which their pull has a part."""
        gradient = self.dagger.bias.grad
        assert gradient is not None
        new = flops_balance(gradient - self.balance * pull, pull)
        self.balance += (new - self.balance) / min(self.step + 1, _BALANCE_STEPS)

    def _set_rates(self) -> None:
        """Lower the learning rates of the gates by a cosine."""
        rate = self.settings.lr * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps))
        for group in self.optimizers[0].param_groups:
            group["lr"] = rate * group["part"]

    def _target(self, step: int) -> float:
        """What the open gates may cost at a step."""
        return self.cost.total - (self.cost.total - self.settings.budget) * min(1.0, (step + 1) / (_RAMP * self.steps))

    def _meet(self, target: float) -> None:
        """Shift the logits so that the open gates cost at most so much."""
        values = self._read_logits()
        excess = self.cost.excess(values, target)
        with torch.no_grad():
            self.dagger.bias.sub_(torch.from_numpy(excess).to(self.dagger.bias))
        self.logits = values - excess

    def _read_logits(self) -> Scores:
        """All logits in a row."""
        with torch.no_grad():
            logits = self.dagger.logits([describe(*weights) for describe, weights in self.descriptions])
            return logits.double().cpu().numpy()

    # --- which gates ---

    def start_from(self, orders: Sequence[Scores]) -> None:
        """Start from that one of several orders of the channels that loses least at the budget."""
        self.dagger.load_state_dict(self._best_of([self._in_order(order) for order in orders]))
        # Scores differ between processes if BatchNorm has seen only their part of the data.
        with torch.no_grad():
            for parameter in self.dagger.parameters():
                parameter.copy_(of_main_process(parameter.detach().clone()))
        self.start = self._state()
        self._meet(self._target(self.step))

    def choose(self) -> None:
        """Take the gates of the start, the learned ones or those halfway between: what loses least."""
        learned, ends = self._state(), []
        for state in (self.start, learned):
            self._go_to(state)
            ends.append(torch.from_numpy(self._read_logits()))
        self.dagger.set_logits((ends[0] + ends[1]) / 2)
        self._go_to(self._best_of([self.start, self._state(), learned]))

    def result(self) -> Gates:
        """The learned gates, on the device of the original."""
        gated: fx.GraphModule = self.accelerator.unwrap_model(self.objective).gated
        gated.to(next(iter(self.graph.module.parameters())).device).train(self.graph.module.training)
        logits = self._read_logits()
        scores = np.full(self.graph.num_channels, np.inf)
        scores[self.cost.channels] = logits
        closed = sorted((scores[block.channel], block.name) for block in self.blocks if scores[block.channel] <= 0)
        names = tuple(name for _, name in closed)
        return Gates(scores.clip(-1e6, 1e6), gated, self.cost.fraction(logits), tuple(self.losses), names)

    def _in_order(self, order: Scores) -> _State:
        """The state whose logits are spread evenly, in the order of some scores."""
        channels = self.cost.channels
        ranks = np.empty(len(channels))
        ranks[np.argsort(order[channels], kind="stable")] = np.arange(1, len(channels) + 1)
        self.dagger.set_logits(torch.from_numpy(_RANGE * ranks / len(channels)))
        return self._state()

    def _best_of(self, states: list[_State]) -> _State:
        """The state whose gates lose least at the budget, on the samples."""
        # Of those with the same gates the last.
        different = {}
        for number, state in enumerate(states):
            self._go_to(state)
            alive = self.cost.alive(self._read_logits())
            different[alive.tobytes()] = number, alive
        numbers, candidates = zip(*different.values(), strict=True)
        best = numbers[-1]
        if len(numbers) > 1:
            compensated, seed = self.settings.train_weights, self.settings.seed
            best = numbers[least_lossy(self.graph, candidates, self.samples, compensated=compensated, seed=seed)]
        return states[int(of_main_process(torch.tensor(best, device=self.accelerator.device)))]

    def _state(self) -> _State:
        return {name: value.clone() for name, value in self.dagger.state_dict().items()}

    def _go_to(self, state: _State) -> None:
        """Take another state of the Dagger module, and meet the budget with it."""
        self.dagger.load_state_dict(state)
        self._meet(self.settings.budget)

    # --- checkpoints ---

    def save(self, path: str | Path) -> None:
        """Write a snapshot, in the main process; the others wait."""
        logits = torch.from_numpy(self.logits)
        progress = {"step": self.step, "losses": list(self.losses), "balance": self.balance, "logits": logits}
        save_run(path, self.accelerator, asdict(self.settings), self.objective, self.optimizers, progress)

    def restore(self, path: str | Path) -> None:
        """Go on from a snapshot.

        Raises:
            FxpruneError: it is of a run with other settings.
        """
        found = restore_run(path, self.accelerator, asdict(self.settings), self.objective, self.optimizers)
        self.step, self.losses, self.balance = found["step"], found["losses"], found["balance"]
        self.logits = found["logits"].numpy()


class _Objective(nn.Module):
    """Everything that depends on parameters in one forward, as data-parallel training needs it."""

    def __init__(self, gated: fx.GraphModule, temperature: float) -> None:
        super().__init__()
        self.gated = gated
        self._temperature = temperature

    def forward(self, batch: Batch, wanted: Any) -> Tensor:
        outputs = run_model(self.gated, batch)
        if batch.labels is not None:
            return class_loss(as_class_scores(self.gated, outputs), batch.labels)
        outputs, wanted = (separated(self.gated, side) for side in (outputs, wanted))
        return distillation_loss(outputs, wanted, self._temperature)


def _optimizers(gated: fx.GraphModule, dagger: Dagger, settings: Settings) -> list[torch.optim.Optimizer]:
    """One for the Dagger module and, if the weights are trained as well, one for them; the other weights are frozen."""
    gates = set(dagger.parameters())
    weights = [parameter for parameter in gated.parameters() if parameter not in gates]
    gated.train(settings.train_weights)
    for parameter in weights:
        parameter.requires_grad_(settings.train_weights and parameter.requires_grad)
    parts = [
        {"params": [dagger.bias], "part": 1.0},
        {
            "params": [parameter for parameter in dagger.parameters() if parameter is not dagger.bias],
            "part": _SHARED_RATE,
        },
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(parts, lr=settings.lr, betas=(0.9, 0.99), fused=True)]
    if settings.train_weights:
        trained = [parameter for parameter in weights if parameter.requires_grad]
        # Complex weights are updated one by one.
        fused = all(parameter.is_floating_point() for parameter in trained)
        optimizers.append(torch.optim.SGD(trained, lr=settings.weight_lr, momentum=0.9, fused=fused))
    return optimizers

"""Pass: pruned model + a batch -> the pruned model with weights that make up for what is gone.

The original and the pruned model run side by side on the batch, and the pruned one is corrected as the pass goes, so
that each layer is fitted to the inputs that it will really have. Two corrections:

- *Ridge*, at each convolution and linear layer: the change D of its weight that brings its output on the pruned
  inputs x back to the original's output y, ``min |(W + D) x - y|^2 + damping |D|^2``. At the end of a residual branch y
  also has what the other side of the sum lacks by now (He et al., "Channel Pruning", ICCV 2017).
- *Moments*, at each BatchNorm: its statistics are set so that its output has the mean and deviation, per channel, that
  the original's has on the same batch. Plain re-estimation supposes that the batch looks like the training data. Not
  where the ridge has made up for another side: the output is then meant to be another.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph
from fxprune.compensation.holdout import output_error, split_apart
from fxprune.compensation.lockstep import Lockstep
from fxprune.compensation.ridge import solve
from fxprune.data import Batch, read_batch
from fxprune.errors import FxpruneError
from fxprune.layers.batch_norm import has_statistics
from fxprune.layers.contraction import Contraction, contraction_of, find_parameter, rows_of
from fxprune.layers.residuals import other_side
from fxprune.progress import Progress, silent
from fxprune.rewriting import alive_channels, original_graph, plan_of, pruning_notes, set_pruning_notes
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.eval_mode import in_eval

__all__ = ["compensate"]

_CHUNK = 16
# A residual below this part of the output is rounding.
_NOTHING = 1e-10
# The most by which moments scale a channel.
_MOST_GAIN = 4.0
# A BatchNorm that scales a channel by less than this part of the most lets nothing through.
_LEAST_GAIN = 1e-3
# Rows that a layer is fitted on, for each input of the weight; positions of a sample that moments are taken on.
_ROWS_PER_INPUT, _GRID = 64, 196


@keep_freed_memory()
def compensate(
    original: nn.Module | ChannelGraph,
    pruned: fx.GraphModule,
    batch: Any,
    *,
    ridge: bool = True,
    moments: bool = True,
    holdout: float = 0.25,
    damping: float | Sequence[float] = (1e-2, 1e-1, 1.0, 4.0),
    positions: int = 32768,
    seed: int = 0,
    progress: Progress = silent,
) -> fx.GraphModule:
    """Change the weights of a pruned model so that it does again what the original does on a batch.

    Args:
        original: the model that was pruned, or its `ChannelGraph` where it is at hand; not changed.
        pruned: what `fxprune.prune` or `fxprune.rewrite` made of it; not changed.
        batch: unlabelled samples at hand: a tensor (samples, ...), a pair (inputs, None), a dict of keyword inputs, or
            a `Batch`. About a hundred suffice.
        ridge: whether weights are fitted to the original's outputs.
        moments: whether BatchNorm statistics are.
        holdout: the part of the samples that judges each step; samples that the model answers alike are held out
            together. The steps that are kept are then fitted to all samples. 0 for none: all steps are kept.
        damping: of the ridge, relative to the mean square of the inputs; of several the held-out part chooses.
        positions: about how many places (samples times positions in space) a layer is fitted on.
        seed: of the split and the positions.
        progress: is told of the nodes done.

    Returns:
        A new model of the same graph and shapes; `fxprune.rewriting.pruning_notes` names the corrections kept.

    Raises:
        FxpruneError: an argument is out of range, or the batch does not fit the model.
    """
    if not 0 <= holdout < 1:
        raise FxpruneError(f"holdout (={holdout}) must be a part of the samples: at least 0 and below 1")
    samples = read_batch(batch).on_device_of(original.module if isinstance(original, ChannelGraph) else original)
    choices = tuple(sorted(damping)) if isinstance(damping, Sequence) else (damping,)
    if not choices or min(choices) <= 0:
        raise FxpruneError(f"damping (={damping!r}) must be positive")
    graph = original
    if not isinstance(graph, ChannelGraph):
        graph = original_graph(graph, pruned, samples.example)
    sides = split_apart(graph.module, samples, holdout, seed)
    fit, judge = ([] if side is None else side.split(_CHUNK) for side in sides)
    alive = alive_channels(graph, plan_of(pruned))
    parts = [name for name, wanted in (("ridge", ridge), ("moments", moments)) if wanted]
    best = copy.deepcopy(pruned)
    kept: tuple[str, ...] = ()
    least = output_error(graph.module, best, judge)
    # All together first: where that helps, single parts are not tried.
    for trial in dict.fromkeys([tuple(parts), *((part,) for part in reversed(parts))]):
        if not trial or kept or alive.all():
            break
        fitted = copy.deepcopy(pruned)
        chosen = _Pass(graph, alive, fitted, fit, judge, trial, choices, positions, seed, progress).run()
        if not judge or output_error(graph.module, fitted, judge) < least:
            best, kept = fitted, trial
            if judge:
                # What was held out has decided; now it is fitted to as well.
                best = copy.deepcopy(pruned)
                _Pass(graph, alive, best, fit + judge, [], trial, chosen, positions, seed, progress).run()
    set_pruning_notes(best, replace(pruning_notes(best), compensated=kept))
    return best


@dataclass(frozen=True, eq=False)
class _Pass:
    """One walk through both graphs that corrects the pruned one.

    Attributes:
        damping: what each layer may choose from, or what each layer uses: None for a layer that is left as it is.
    """

    graph: ChannelGraph
    alive: npt.NDArray[np.bool_]
    pruned: fx.GraphModule
    fit: list[Batch]
    judge: list[Batch]
    parts: tuple[str, ...]
    damping: Sequence[float] | Mapping[str, float | None]
    positions: int
    seed: int
    progress: Progress

    def run(self) -> dict[str, float | None]:
        """Correct the model; returns the damping that each layer chose."""
        chosen: dict[str, float | None] = {}
        lockstep = Lockstep(self.graph.module, self.pruned, [*self.fit, *self.judge])
        uses = _uses(self.pruned)
        modules = dict(self.pruned.named_modules())
        total = len(self.pruned.graph.nodes)
        norms = [module for module in modules.values() if has_statistics(module)]
        moments = [moment for norm in norms for moment in (norm.running_mean, norm.running_var)]
        unmatched: set[fx.Node] = set()
        with torch.no_grad(), in_eval(self.graph.module, self.pruned, changing=moments):
            for number, (partner, node) in enumerate(lockstep):
                module = modules[str(node.target)] if node.op == "call_module" else None
                if partner is not None and has_statistics(module) and uses[id(module)] == 1:
                    if "moments" in self.parts and node not in unmatched:
                        self._match_moments(lockstep, partner, node, module)
                else:
                    found = contraction_of(node, self.pruned) if partner is not None and "ridge" in self.parts else None
                    if found is not None and uses[id(find_parameter(self.pruned, found.weight))] == 1:
                        assert partner is not None
                        after = _norm_after(node, modules, uses)
                        norm = None if after is None else modules[str(after.target)]
                        lacking = self._lacking(lockstep, partner, other_side(after or node, modules), norm)
                        strength = self._fit_weight(lockstep, partner, node, found, norm, uses, lacking)
                        chosen[node.name] = strength
                        if after is not None and lacking and strength is not None:
                            unmatched.add(after)
                lockstep.pruned.run(node)
                self.progress("compensate", number + 1, total, {})
        return chosen

    def _match_moments(self, lockstep: Lockstep, partner: fx.Node, node: fx.Node, module: Any) -> None:
        source, pruned_source = partner.all_input_nodes[0], node.all_input_nodes[0]
        kept = self._kept(partner.name)
        mean, var = (part[kept] for part in _moments(lockstep.original.values[source][: len(self.fit)]))
        new_mean, new_var = _moments(lockstep.pruned.values[pruned_source][: len(self.fit)])
        # The original's own: in the pruned model the ridge may have put an intercept there.
        reference: Any = self.graph.module.get_submodule(str(partner.target))
        running_mean, running_var = reference.running_mean.double()[kept], reference.running_var.double()[kept]
        unmoved = torch.equal(module.running_mean, running_mean.to(module.running_mean))
        if _close(mean, new_mean, var) and _close(var, new_var, var) and unmoved:
            return
        # Output mean and deviation stay if (mean - running_mean) / sqrt(running_var + eps) and its like for var do.
        ratio = (new_var / var.clamp_min(1e-30)).clamp(_MOST_GAIN**-2, _MOST_GAIN**2)
        ratio = torch.where(var > 1e-12 * var.mean(), ratio, torch.ones_like(ratio))
        scaled = ((running_var + module.eps) * ratio - module.eps).clamp_min(0)
        gain = ((scaled + module.eps) / (running_var + module.eps)).sqrt()
        module.running_mean.copy_(new_mean - (mean - running_mean) * gain)
        module.running_var.copy_(scaled)

    def _left(self, name: str, y: Tensor) -> Tensor:
        """What stays of a node's output, along all dimensions: layers that mix tokens have channels at the others."""
        for d, dim in enumerate(self.graph.labels_of(name).dims):
            if not isinstance(dim, int) and len(dim) == y.shape[d] and not self.alive[dim].all():
                y = y.index_select(d, self._kept(name, d).to(y.device))
        return y

    def _kept(self, name: str, axis: int = 1) -> Tensor:
        """Which channels of a node's output stay along a dimension."""
        dim = self.graph.labels_of(name).dims[axis]
        return torch.from_numpy(np.flatnonzero(np.ones(dim, dtype=bool) if isinstance(dim, int) else self.alive[dim]))

    def _lacking(self, lockstep: Lockstep, partner: fx.Node, other: fx.Node | None, norm: Any) -> list[Tensor]:
        """What the other side of a sum lacks in each batch, in units of a layer's output; empty where there is none.

        Args:
            partner: the layer, in the original.
            other: what its output is added to, past `norm` if that is not None.
        """
        before = {source.name: source for source in lockstep.original.values}
        if other is None or other not in lockstep.pruned.values or other.name not in before:
            return []
        lacking = []
        values = lockstep.original.values
        for wanted, now, own in zip(
            values[before[other.name]], lockstep.pruned.values[other], values[partner], strict=True
        ):
            # Of sides of two sizes one is spread out.
            if not isinstance(wanted, Tensor) or wanted.shape != own.shape:
                return []
            left = self._left(other.name, wanted)
            if left.shape != now.shape:
                return []
            lacking.append(left - now if norm is None else (left - now) / _gain(norm, now.dim()))
        return lacking

    def _fit_weight(
        self,
        lockstep: Lockstep,
        partner: fx.Node,
        node: fx.Node,
        found: Contraction,
        norm: Any,
        uses: Counter[int],
        lacking: list[Tensor],
    ) -> float | None:
        """Correct a weight; returns the damping, None where it stays as it is."""
        choices = [self.damping.get(node.name)] if isinstance(self.damping, Mapping) else self.damping
        strengths = [strength for strength in choices if strength is not None]
        if not strengths:
            return None
        random = torch.Generator().manual_seed(self.seed)
        weight = find_parameter(self.pruned, found.weight)
        bias = None if found.bias is None else find_parameter(self.pruned, found.bias)
        width = weight[0].numel()
        rows, residuals, counts, scale = [], [], [], 0.0
        budget = max(min(self.positions, _ROWS_PER_INPUT * width, 2**26 // max(width * found.groups, 1)), 512)
        samples = sum(batch.size for batch in self.fit)
        table = weight.reshape(found.groups, -1, width).transpose(1, 2)
        offset = 0.0 if bias is None else bias.reshape(found.groups, 1, -1)
        sides = lockstep.pruned.values[found.input], lockstep.original.values[partner]
        for number, (x, y) in enumerate(zip(*sides, strict=True)):
            y = self._left(partner.name, y)
            if lacking:
                y = y + lacking[number]
            if x.shape[0] != y.shape[0] or not (found.kernel or x.shape[:-1] == y.shape[:-1]):
                # Channels along the batch: at other sizes it is not known which rows are left.
                return None
            a, wanted = rows_of(found, x, y, budget / samples, random)
            now = (torch.bmm(a.transpose(0, 1), table) + offset).transpose(0, 1)
            rows.append(a)
            residuals.append(wanted - now)
            scale += float(wanted.double().square().sum())
            counts.append(len(a))
        cut = sum(counts[: len(self.fit)])
        a, r = torch.cat(rows), torch.cat(residuals)
        if float(r.double().square().sum()) <= _NOTHING * scale:
            return None
        centre = norm is not None or (bias is not None and uses[id(bias)] == 1)
        solved = solve(a[:cut], r[:cut], a[cut:], r[cut:], centre, strengths)
        if solved is None:
            return None
        strength, change, intercept = solved
        weight.add_(change.reshape(weight.shape).to(weight))
        if centre and bias is not None and uses[id(bias)] == 1:
            bias.add_(intercept.to(bias))
        elif norm is not None:
            norm.running_mean.sub_(intercept.to(norm.running_mean))
        return strength


def _norm_after(node: fx.Node, modules: Mapping[str, Any], uses: Counter[int]) -> fx.Node | None:
    """The BatchNorm that alone takes a node's output, and nothing else."""
    follower = next(iter(node.users)) if len(node.users) == 1 else None
    module = modules[str(follower.target)] if follower is not None and follower.op == "call_module" else None
    return follower if has_statistics(module) and uses[id(module)] == 1 else None


def _gain(norm: Any, rank: int) -> Tensor:
    """By what a BatchNorm multiplies each channel of an input of so many dimensions; infinite where that is nothing."""
    gain = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    gain = torch.where(gain.abs() < _LEAST_GAIN * gain.abs().max(), torch.inf, gain)
    return gain.reshape(-1, *(1,) * (rank - 2))


def _moments(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel (dimension 1) of batches, on a grid of positions."""
    flat = [x.flatten(2) if x.dim() > 2 else x.unsqueeze(2) for x in values]
    thinned = [x[:, :, :: max(x.shape[2] // _GRID, 1)].transpose(0, 1).flatten(1) for x in flat]
    joined = torch.cat(thinned, dim=1)
    variance, mean = torch.var_mean(joined, dim=1, correction=0)
    return mean.double(), variance.double()


def _close(a: Tensor, b: Tensor, var: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-6 * (a.abs() + var.sqrt())).all())


def _uses(module: fx.GraphModule) -> Counter[int]:
    """How often modules and parameters are used; by identity, so that tied ones count together."""
    modules = dict(module.named_modules())
    uses: Counter[int] = Counter()
    for node in module.graph.nodes:
        if node.op == "call_module":
            target = modules[str(node.target)]
            uses[id(target)] += 1
            uses.update(id(parameter) for parameter in target.parameters())
        elif node.op == "get_attr":
            # Reading a weight's size is no use of the weight.
            tensors = [user for user in node.users if isinstance(user.meta.get("value", torch.empty(0)), Tensor)]
            uses[id(find_parameter(module, str(node.target)))] += len(tensors)
    return uses

"""One walk through the original and the pruned model, side by side, that corrects the weights of the pruned one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph
from fxprune.compensation.lockstep import Lockstep
from fxprune.compensation.recalibration import recalibrate
from fxprune.compensation.reconstruction import FittedLayer, Reconstruction
from fxprune.data import Batch
from fxprune.layers.batch_norm import BatchNorm, has_statistics
from fxprune.layers.contraction import contraction_of, find_parameter
from fxprune.layers.residuals import other_side
from fxprune.ops import Trait, traits
from fxprune.progress import Progress
from fxprune.running.eval_mode import in_eval

__all__ = ["Correction", "Damping"]

Damping = Callable[[str], Sequence[float]]
"""What the layer of a node, by name, may choose its damping from; nothing leaves the layer as it is."""

# A channel that a BatchNorm scales by less than this fraction of the largest scale makes up for nothing. Not tuned.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True, eq=False)
class Correction:
    """How pruned models of one original are corrected.

    Attributes:
        graph: the original.
        alive: which of its channels are kept.
        positions: about how many positions of all samples a layer is fitted to.
        seed: of the positions.
        progress: is called with the number of nodes done.
    """

    graph: ChannelGraph
    alive: npt.NDArray[np.bool_]
    positions: int
    seed: int
    progress: Progress

    def apply(
        self,
        pruned: fx.GraphModule,
        parts: Collection[str],
        fit: Sequence[Batch],
        judge: Sequence[Batch],
        damping: Damping,
    ) -> dict[str, list[float]]:
        """Correct a pruned model, which is changed.

        Args:
            pruned: the model.
            parts: "ridge" to fit weights, "moments" to recalibrate BatchNorms.
            fit: samples to fit to.
            judge: samples to choose the damping by.
            damping: what is chosen from.

        Returns:
            The damping that layers chose, by node name; an empty list for a layer that was left as it is.
        """
        layers = _Layers(pruned)
        samples = sum(batch.size for batch in fit)
        walk = _Walk(
            Lockstep(self.graph.module, pruned, [*fit, *judge]),
            _Channels(self.graph, self.alive),
            layers,
            Reconstruction(len(fit), samples, self.positions, self.seed),
        )
        with torch.no_grad(), in_eval(self.graph.module, pruned, changing=layers.statistics()):
            for number, (partner, node) in enumerate(walk.lockstep):
                if partner is not None and "moments" in parts and (norm := layers.batch_norm(node)) is not None:
                    walk.recalibrate(partner, node, norm)
                if partner is not None and "ridge" in parts and (layer := layers.fitted(node)) is not None:
                    walk.reconstruct(partner, node, layer, damping(node.name))
                walk.lockstep.pruned.run(node)
                self.progress("compensate", number + 1, len(pruned.graph.nodes), {})
        return walk.chosen


@dataclass(eq=False)
class _Walk:
    """The values of both models on the way, and what was done so far.

    Attributes:
        chosen: the damping of each layer, by node name.
        unmatched: BatchNorms whose outputs are meant to differ from the original's.
    """

    lockstep: Lockstep
    channels: _Channels
    layers: _Layers
    reconstruction: Reconstruction
    chosen: dict[str, list[float]] = field(default_factory=dict)
    unmatched: set[fx.Node] = field(default_factory=set)

    def recalibrate(self, partner: fx.Node, node: fx.Node, norm: BatchNorm) -> None:
        """Match the moments of a BatchNorm to those of the original, its partner."""
        if node in self.unmatched:
            return
        original = self.lockstep.original.module.get_submodule(str(partner.target))
        assert has_statistics(original)
        values, fit = self.lockstep.original.values[partner.all_input_nodes[0]], self.reconstruction.fit
        pruned_values = self.lockstep.pruned.values[node.all_input_nodes[0]]
        recalibrate(norm, original, self.channels.kept(partner), values[:fit], pruned_values[:fit])

    def reconstruct(self, partner: fx.Node, node: fx.Node, layer: FittedLayer, damping: Sequence[float]) -> None:
        """Fit a layer to the outputs of the original, its partner, and to what the other side of a sum lacks."""
        lacking = self._lacking(partner, layer, node)
        inputs = self.lockstep.pruned.values[layer.contraction.input]
        strength = self.reconstruction.apply(layer, inputs, self._wanted(partner, lacking), damping)
        self.chosen[node.name] = [] if strength is None else [strength]
        if lacking and strength is not None and layer.norm_node is not None:
            self.unmatched.add(layer.norm_node)

    def _wanted(self, partner: fx.Node, lacking: Sequence[Tensor]) -> Iterator[Tensor]:
        """The outputs that a layer should have, for each batch."""
        for number, y in enumerate(self.lockstep.original.values[partner]):
            kept = self.channels.cut(partner, y)
            yield kept + lacking[number] if lacking else kept

    def _lacking(self, partner: fx.Node, layer: FittedLayer, node: fx.Node) -> list[Tensor]:
        """What the other side of a sum lacks, for each batch, in units of the layer's outputs; empty for no such side.

        Args:
            partner: the layer in the original.
            layer: the layer.
            node: its node.
        """
        values = self.lockstep.original.values
        other, other_partner = self.layers.other_side(node, layer), self.channels.other_side(partner)
        if other_partner not in values or other not in self.lockstep.pruned.values:
            return []
        lacking = []
        for wanted, now, own in zip(
            values[other_partner], self.lockstep.pruned.values[other], values[partner], strict=True
        ):
            # If the sides differ in size, one is spread out.
            if not isinstance(wanted, Tensor) or wanted.shape != own.shape:
                return []
            kept = self.channels.cut(other_partner, wanted)
            if kept.shape != now.shape:
                return []
            lacking.append(kept - now if layer.norm is None else (kept - now) / _gain(layer.norm, now.dim()))
        return lacking


@dataclass(frozen=True, eq=False)
class _Channels:
    """Which channels are kept, seen from the nodes of the original."""

    graph: ChannelGraph
    alive: npt.NDArray[np.bool_]

    def other_side(self, node: fx.Node) -> fx.Node | None:
        """What the outputs of a layer, or of the BatchNorm after it, are added to."""
        modules = dict(self.graph.module.named_modules())
        follower = next(iter(node.users)) if len(node.users) == 1 else None
        module = modules[str(follower.target)] if follower is not None and follower.op == "call_module" else None
        return other_side(follower if follower is not None and has_statistics(module) else node, modules)

    def kept(self, node: fx.Node, axis: int = 1) -> Tensor:
        """The indices that are kept of a dimension of a node's output."""
        dim = self.graph.labels_of(node.name).dims[axis]
        return torch.from_numpy(np.flatnonzero(np.ones(dim, dtype=bool) if isinstance(dim, int) else self.alive[dim]))

    def cut(self, node: fx.Node, y: Tensor) -> Tensor:
        """What is kept of a node's output, along all dimensions: layers over tokens have channels in other ones."""
        for d, dim in enumerate(self.graph.labels_of(node.name).dims):
            if not isinstance(dim, int) and len(dim) == y.shape[d] and not self.alive[dim].all():
                y = y.index_select(d, self.kept(node, d).to(y.device))
        return y


class _Layers:
    """The layers of a pruned model that can be corrected: modules and parameters that are used once."""

    def __init__(self, pruned: fx.GraphModule) -> None:
        self._pruned = pruned
        self._modules = dict(pruned.named_modules())
        self._state = pruned.state_dict().keys()
        self._uses: Counter[int] = Counter()
        for node in pruned.graph.nodes:
            if node.op == "call_module":
                module = self._modules[str(node.target)]
                self._uses[id(module)] += 1
                self._uses.update(id(parameter) for parameter in module.parameters())
            elif node.op == "get_attr":
                # To read a weight's size is not to use the weight.
                tensors = [user for user in node.users if isinstance(user.meta.get("value", torch.empty(0)), Tensor)]
                self._uses[id(find_parameter(pruned, str(node.target)))] += len(tensors)

    def statistics(self) -> list[Tensor]:
        """The running means and variances of all BatchNorms."""
        norms = [module for module in self._modules.values() if has_statistics(module)]
        return [moment for norm in norms for moment in (norm.running_mean, norm.running_var)]

    def batch_norm(self, node: fx.Node | None) -> BatchNorm | None:
        """The BatchNorm that a node calls, if no other node does."""
        module = self._modules[str(node.target)] if node is not None and node.op == "call_module" else None
        return module if has_statistics(module) and self._is_used_once(module) else None

    def fitted(self, node: fx.Node) -> FittedLayer | None:
        """The convolution or linear layer that a node is, if no other node uses its weight."""
        found = contraction_of(node, self._pruned)
        # What is not in the state_dict is made anew from the original when the model is loaded.
        if found is None or found.weight not in self._state:
            return None
        weight = find_parameter(self._pruned, found.weight)
        if not self._is_used_once(weight):
            return None
        bias = None if found.bias is None else find_parameter(self._pruned, found.bias)
        follower = next(iter(node.users)) if len(node.users) == 1 else None
        norm = self.batch_norm(follower)
        owns_bias = bias is not None and self._is_used_once(bias)
        later = self._later_bias(node, follower, len(found.by_outputs(weight))) if bias is None else None
        return FittedLayer(found, weight, bias, owns_bias, later, None if norm is None else follower, norm)

    def _later_bias(self, node: fx.Node, follower: fx.Node | None, outputs: int) -> Tensor | None:
        """A parameter of one entry for each output that the follower adds to a node, if no other node uses it."""
        if follower is None or Trait.ADDITION not in traits(follower) or len(follower.args) != 2 or follower.kwargs:
            return None
        [other] = [value for value in follower.args if value is not node] or [None]
        if not isinstance(other, fx.Node) or other.op != "get_attr":
            return None
        bias = find_parameter(self._pruned, str(other.target))
        stays = str(other.target) in self._state and self._is_used_once(bias)
        return bias if stays and tuple(bias.shape) == (outputs,) else None

    def other_side(self, node: fx.Node, layer: FittedLayer) -> fx.Node | None:
        """What the outputs of a layer, or of the BatchNorm after it, are added to."""
        return other_side(layer.norm_node or node, self._modules)

    def _is_used_once(self, part: object) -> bool:
        # By identity, so that tied parameters count together.
        return self._uses[id(part)] == 1


def _gain(norm: BatchNorm, rank: int) -> Tensor:
    """The scale of a BatchNorm for inputs of `rank` dimensions, per channel; infinite where it is too small."""
    gain = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    gain = torch.where(gain.abs() < _LEAST_GAIN * gain.abs().max(), torch.inf, gain)
    return gain.reshape(-1, *(1,) * (rank - 2))

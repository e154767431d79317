"""What layers see and how much the loss depends on what they give: moments of inputs, squared gradients of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Scores
from fxprune.compensation.holdout import split_apart
from fxprune.data import Batch
from fxprune.layers.contraction import Contraction, contraction_of, find_parameter
from fxprune.layers.gate_places import GatePlace, gate_places
from fxprune.progress import Progress, silent
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.scoring.gate_gradients import GateReader
from fxprune.scoring.refitting import Reader

__all__ = ["LayerStatistics", "Statistics", "collect_statistics"]

# Positions of one sample are alike: no more of them count as independent. Not tuned.
_INDEPENDENT = 8
# How many samples of each half judge; fewer where there are many groups. 24 were no better, but slower.
_JUDGES, _JUDGES_TIMES_GROUPS = 4, 400


class _Moments:
    """Sums over rows of inputs."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def add(self, count: int, total: Tensor, products: Tensor) -> None:
        """Add the sum of so many rows (inputs,), and that of their products (inputs, inputs)."""
        self.count += count
        self._sum += total.double().cpu()
        self._products += products.double().cpu()

    def mean(self) -> Tensor:
        """Of the rows (inputs,)."""
        return torch.as_tensor(self._sum / self.count)

    def about(self, centre: Tensor) -> Tensor:
        """Mean products of the differences from a centre (inputs, inputs)."""
        mean = self.mean()
        second = torch.as_tensor(self._products / self.count)
        return second - torch.outer(mean, centre) - torch.outer(centre, mean) + torch.outer(centre, centre)


@dataclass(eq=False)
class LayerStatistics:
    """What was seen of one layer that sums over channels.

    Attributes:
        place: where the channels enter it.
        contraction: what it is.
        halves: moments of its inputs in each half of the samples.
        squares: of the outputs' gradients, summed over all samples (outputs,); None while there are none.
    """

    place: GatePlace
    contraction: Contraction
    halves: tuple[_Moments, _Moments] = field(default_factory=lambda: (_Moments(), _Moments()))
    squares: Tensor | None = None

    def add_gradient(self, gradient: Tensor) -> None:
        """Add the gradient of the outputs for some samples."""
        dim = 1 if self.contraction.kernel else gradient.dim() - 1
        others = [d for d in range(gradient.dim()) if d != dim]
        squares = gradient.square().sum(others).double().cpu()
        self.squares = squares if self.squares is None else self.squares + squares


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen of all layers, in two halves of the samples.

    Attributes:
        model: the traced model.
        layers: those that sum over channels, by node name.
        samples: how many were seen.
        fisher: as `fisher_scores` with `flops_power` 0 (number of channels,).
        judges: a few samples of each half, or None and None if there was only one sample.
    """

    model: fx.GraphModule
    layers: dict[str, LayerStatistics]
    samples: int
    fisher: Scores
    judges: tuple[Batch, Batch] | tuple[None, None]

    def readers(self, damping: float, fitted: int) -> list[Reader]:
        """The layers that the loss depends on, ready to be refitted.

        Args:
            damping: added to covariances, relative to the mean variance.
            fitted: the half that is fitted to, 0 or 1; the other one judges.
        """
        return [
            self._reader(name, layer, layer.squares, damping, fitted)
            for name, layer in self.layers.items()
            if layer.squares is not None and all(half.count for half in layer.halves)
        ]

    def _reader(self, name: str, layer: LayerStatistics, squares: Tensor, damping: float, fitted: int) -> Reader:
        fit, judge = layer.halves[fitted], layer.halves[1 - fitted]
        mean = fit.mean()
        sampled = fit.about(mean)
        width = len(sampled)
        independent = min(fit.count, _INDEPENDENT * self.samples / 2)
        # With fewer samples than inputs every channel would seem to be a sum of the others.
        shrunk = sampled * (independent / (independent + width))
        diagonal = sampled.diagonal().clamp_min(0)
        shrunk.diagonal().copy_(diagonal + damping * diagonal.mean().clamp_min(1e-30))
        own = find_parameter(self.model, layer.contraction.weight).detach()
        roots = (squares / self.samples).sqrt()[:, None, None]
        return Reader(
            node=name,
            contraction=layer.contraction,
            channels=layer.place.channels,
            mean=mean,
            second_moments=(fit.about(0 * mean) + judge.about(0 * mean)).diagonal() / 2,
            covariance=judge.about(mean).float(),
            inverse=torch.linalg.inv(shrunk),
            own=own,
            roots=roots,
            weight=layer.contraction.by_outputs(own).double().cpu().reshape(len(roots), width, -1) * roots,
        )


def collect_statistics(
    graph: ChannelGraph, batches: Iterable[Batch], seed: int, progress: Progress = silent
) -> Statistics:
    """Run the model forwards and backwards on the samples, once.

    Args:
        graph: the analysed model.
        batches: checked, and on the model's device.
        seed: of the halves, and of the directions where there are no labels.
        progress: is called with the number of samples done.

    Raises:
        CannotScoreError: the model does not run on the samples, mixes them with channels, or has no outputs to score
            by.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    layers: dict[str, LayerStatistics] = {}
    for place in gate_places(graph):
        found = contraction_of(nodes[place.node], graph.module)
        if found is not None and found.groups == 1 and found.input.name == place.argument:
            layers[place.node] = LayerStatistics(place, found)
    random = torch.Generator().manual_seed(seed)
    judging = min(_JUDGES, max(2, _JUDGES_TIMES_GROUPS // max(len(graph.groups), 1)))
    squares, samples, judges = np.zeros(graph.num_channels), 0, None
    with in_eval_without_grad(graph.module):
        observer = _Observer(graph, layers)
        for batch in batches:
            first, second = split_apart(graph.module, batch, 0.5, seed)
            if second is None:
                # The positions of a single sample are shared between both halves.
                parts: list[tuple[Batch, tuple[int, ...]]] = [(first, (0, 1))]
            else:
                judges = judges or (first.rows(0, judging), second.rows(0, judging))
                parts = [(first, (0,)), (second, (1,))]
            for half, numbers in parts:
                observer.halves = numbers
                for part in half.split():
                    for gradients in observer.read(part, 1, random):
                        squares += gradients.square().sum(0).numpy()
                    samples += part.size
                    progress("score", samples, samples, {})
    return Statistics(graph.module, layers, samples, squares / samples, judges or (None, None))


class _Observer(GateReader):
    """Reads gradients by gates, and adds to the statistics of layers what is seen on the way.

    Attributes:
        halves: of the samples, those among which the rows of a batch are shared.
    """

    def __init__(self, graph: ChannelGraph, layers: dict[str, LayerStatistics]) -> None:
        super().__init__(graph)
        self.halves: tuple[int, ...] = ()
        self._layers = layers
        # What each layer of the last run read, for each of these halves, and what it gave.
        self._seen: list[tuple[LayerStatistics, list[tuple[int, Tensor, Tensor]], Tensor]] = []

    def run_gated(self, batch: Batch) -> object:
        """The outputs for a batch."""
        self._seen = []
        return super().run_gated(batch)

    def watched(self) -> list[Tensor]:
        """The outputs of layers."""
        return [out for _, _, out in self._seen]

    def see(self, gradients: Sequence[Tensor | None]) -> None:
        """Add what layers read, and the gradients of their outputs."""
        for (layer, sums, _), gradient in zip(self._seen, gradients, strict=True):
            for half, seen in zip(self.halves, sums, strict=True):
                layer.halves[half].add(*seen)
            if gradient is not None:
                layer.add_gradient(gradient)
        self._seen = []

    def run_node(self, n: fx.Node) -> object:
        """Run one node; gradients start at the first gate, or at the first layer that sums over channels."""
        out = super().run_node(n)
        layer = self._layers.get(n.name)
        if layer is None:
            return out
        x: Tensor = self.env[layer.contraction.input].detach().movedim(layer.place.dim, -1)
        parts = x.reshape(-1, x.shape[-1]).tensor_split(len(self.halves))
        sums = [(len(rows), rows.sum(0), rows.T @ rows) for rows in parts]
        if not out.requires_grad:
            out = out.detach().requires_grad_(True)
        self._seen.append((layer, sums, out))
        # What follows may write in place.
        return out.clone()

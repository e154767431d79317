"""Scores from data: how much the model's outputs depend on each channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Scores
from fxprune.data import Batch, Batches, check_labels, placeholder_values, running_on
from fxprune.errors import FxpruneError
from fxprune.layers.gate_places import gate_places
from fxprune.losses import are_class_labels, class_loss, float_outputs, main_output, number_of_classes
from fxprune.progress import Progress, silent
from fxprune.running.eval_mode import in_eval_without_grad

__all__ = [
    "fisher_scores",
    "gate_gradients",
    "output_losses",
    "per_cost",
    "taylor_scores",
]


def fisher_scores(
    graph: ChannelGraph,
    data: Any,
    *,
    flops_power: float = 0.0,
    probes: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Second order: the mean square of each sample's gradient by the channel's gate.

    Half of it is what closing the gate adds to the loss, as far as channels go one by one. With labels it is the
    empirical Fisher information of the cross-entropy; without, that of the model's own predictions, whose expectation
    is the curvature of the KL divergence to the unpruned outputs.
    (Group Fisher pruning: Liu et al., ICML 2021.)

    Args:
        graph: the analysed model.
        data: see `fxprune.data`; labels may be missing.
        flops_power: scores are divided by this power of the FLOPs that a channel costs.
        probes: random directions per sample; only without labels.
        seed: of the directions.
        progress: is told of the samples done.

    Returns:
        Float array with one entry per channel number, not negative.
    """
    total = np.zeros(graph.num_channels)
    count = 0
    for gradients in gate_gradients(graph, data, probes=probes, seed=seed, progress=progress):
        total += gradients.square().sum(0).cpu().numpy()
        count += len(gradients)
    return per_cost(graph, total / count, flops_power)


def taylor_scores(
    graph: ChannelGraph, data: Any, *, flops_power: float = 0.0, seed: int = 0, progress: Progress = silent
) -> Scores:
    """First order: the size of the gradient of the loss by the channel's gate, signs cancelling over all samples.

    Without labels the loss is the cross-entropy with the model's own most likely class: that to its own soft outputs
    has no gradient at open gates. (Molchanov et al., CVPR 2019.)

    Args and Returns: as for `fisher_scores`.
    """
    total = np.zeros(graph.num_channels)
    count = 0
    for gradients in gate_gradients(graph, data, probes=0, seed=seed, progress=progress):
        total += gradients.sum(0).cpu().numpy()
        count += len(gradients)
    return per_cost(graph, np.abs(total) / count, flops_power)


def gate_gradients(
    graph: ChannelGraph, data: Any, *, probes: int = 1, seed: int = 0, progress: Progress = silent
) -> Iterator[Tensor]:
    """For every batch, each sample's gradient of the loss by the gates where channels are summed over.

    Args:
        probes: without labels, how many random directions in which the outputs move as the model's own predictions
            scatter; 0 for the cross-entropy with the most likely class.

    Yields:
        Shape (samples, or samples times probes; channels), float64.
    """
    random = torch.Generator().manual_seed(seed)
    done = 0
    with in_eval_without_grad(graph.module):
        reader = _GateReader(graph)
        for batch in Batches(data):
            for part in batch.on_device_of(graph.module).split(16):
                yield from reader.read(part, probes, random)
                done += part.size
                progress("score", done, done, {})


def per_cost(graph: ChannelGraph, scores: Scores, power: float) -> Scores:
    """Scores over a power of the FLOPs, or the time, that each channel costs; the mean cost is 1."""
    if not power:
        return scores
    cost = np.maximum(graph.price.marginal(np.ones(graph.num_channels, dtype=bool)), 1.0)
    divided: Scores = scores / (cost / cost.mean()) ** power
    return divided


class _GateReader(fx.Interpreter):
    """Runs the traced model with a gate of one wherever channels are summed over."""

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self._graph_of_channels = graph
        self._places = _places(graph)
        self._gates: list[tuple[Tensor, np.ndarray[Any, Any]]] = []
        self._samples = 0
        self._example = _example_size(graph.module)

    def read(self, batch: Batch, probes: int, random: torch.Generator) -> Iterator[Tensor]:
        """The gradients of one batch; sample by sample where a gate cannot tell samples apart."""
        try:
            outputs, gates = self._run_gated(batch)
        except _MixedSamplesError:
            for k in range(batch.size):
                yield from self.read(batch.rows(k, k + 1), probes, random)
            return
        losses = list(output_losses(outputs, batch.labels, probes, random))
        for k, loss in enumerate(losses):
            gradients = torch.autograd.grad(
                loss, [gate for gate, _ in gates], retain_graph=k + 1 < len(losses), allow_unused=True
            )
            total = torch.zeros(batch.size, self._graph_of_channels.num_channels, dtype=torch.float64)
            for gradient, (_, channels) in zip(gradients, gates, strict=True):
                if gradient is not None:
                    total.index_add_(1, torch.from_numpy(channels), gradient.double().cpu())
            yield total

    def _run_gated(self, batch: Batch) -> tuple[Any, list[tuple[Tensor, np.ndarray[Any, Any]]]]:
        self._gates, self._samples = [], batch.size
        with torch.enable_grad(), running_on(batch):
            outputs = self.run(initial_env=placeholder_values(self.graph, batch))
        gates, self._gates = self._gates, []
        return outputs, gates

    def run_node(self, n: fx.Node) -> Any:
        """Run one node on gated arguments."""
        replaced: dict[fx.Node, Any] = {}
        for argument, d in self._places.get(n.name, ()):
            source = next(node for node in n.all_input_nodes if node.name == argument)
            replaced[source] = self._gated(replaced.get(source, self.env[source]), source, d)
        if not replaced:
            return super().run_node(n)
        kept = {source: self.env[source] for source in replaced}
        self.env.update(replaced)
        try:
            return super().run_node(n)
        finally:
            self.env.update(kept)

    def _gated(self, x: Tensor, source: fx.Node, d: int) -> Tensor:
        channels = self._graph_of_channels.labels_of(source.name).dims[d]
        if isinstance(channels, int) or x.shape[d] != len(channels):
            raise FxpruneError(
                f"channels of {source.name} are counted by the number of samples: such a model cannot be scored on "
                "data; use a method that needs none"
            )
        shape = [1] * x.dim()
        shape[d] = x.shape[d]
        if self._samples > 1:
            # The example tells whether the first dimension is the samples; two equal sizes may be chance.
            by_sample = x.shape[0] == self._samples and source.meta["value"].shape[0] == self._example and d > 0
            if not by_sample:
                raise _MixedSamplesError
            shape[0] = self._samples
        gate = torch.ones((self._samples, x.shape[d]), dtype=x.dtype, device=x.device, requires_grad=True)
        self._gates.append((gate, channels))
        return x * gate.view(shape)


class _MixedSamplesError(Exception):
    """A tensor's first dimension is not the samples."""


def _example_size(module: fx.GraphModule) -> int:
    values = [node.meta.get("value") for node in module.graph.nodes if node.op == "placeholder"]
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    return next((int(shape[0]) for shape in shapes if len(shape)), 0)


def _places(graph: ChannelGraph) -> dict[str, list[tuple[str, int]]]:
    """Where gates stand: at the activations, by node."""
    places: dict[str, list[tuple[str, int]]] = {}
    for place in gate_places(graph):
        if place.from_input:
            places.setdefault(place.node, []).append((place.argument, place.dim))
    return places


def output_losses(outputs: Any, labels: Tensor | None, probes: int, random: torch.Generator) -> Iterator[Tensor]:
    """Scalars whose gradients are the sums of the samples' own.

    Labels that are none of classes are left out. Without labels, the squared gradients have for expectation the
    curvature of `fxprune.losses.distillation_loss` to the outputs as they are.
    """
    if labels is not None and are_class_labels(outputs, labels):
        check_labels(Batch((main_output(outputs),), {}, labels), number_of_classes(outputs))
        yield class_loss(outputs, labels) * len(labels)
    elif not probes:
        output = main_output(outputs)
        if output.dim() < 2 or not output.is_floating_point() or output.shape[1] < 2:
            raise FxpruneError(
                f"first-order scores without labels need class scores (N, C, ...), and the model's output has shape "
                f"{tuple(output.shape)}: give labels, or another method"
            )
        yield F.cross_entropy(output, output.detach().argmax(1), reduction="sum")
    else:
        leaves = float_outputs(outputs)
        if not leaves:
            raise FxpruneError(
                "scores from data need floating-point outputs, and the model has none: use a method without data"
            )
        for _ in range(probes):
            yield torch.stack([(leaf * _direction(leaf.detach(), len(leaves), random)).sum() for leaf in leaves]).sum()


def _direction(output: Tensor, outputs: int, random: torch.Generator) -> Tensor:
    """Random, with the Hessian of the distillation loss by this output, of so many, for covariance."""
    noise = torch.randn(output.shape, generator=random).to(output)
    if outputs == 1 and output.dim() == 2 and output.shape[1] > 1:
        # diag(p) - p p^T: of the KL divergence.
        chance = output.float().softmax(1)
        noise = noise * chance.sqrt()
        return (noise - chance * noise.sum(1, keepdim=True)).to(output)
    size = output.float().square().mean() * output[0].numel() * outputs
    return noise * (2 / size.clamp_min(1e-30)).sqrt().to(output)

"""How much the loss of each sample depends on each channel: the gradient by a gate on the channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.channels import ChannelGraph, Ids
from fxprune.data import BATCH_DIM, Batch, placeholder_values, running_on
from fxprune.errors import CannotScoreError
from fxprune.layers.gate_places import gate_places
from fxprune.progress import Progress, silent
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.scoring.output_losses import output_losses
from fxprune.tracing.notes import call_of

__all__ = ["GateReader", "gate_gradients"]


def gate_gradients(
    graph: ChannelGraph, batches: Iterable[Batch], *, probes: int = 1, seed: int = 0, progress: Progress = silent
) -> Iterator[Tensor]:
    """Each sample's gradient of the loss by gates of value 1, wherever channels are summed over.

    Args:
        graph: the analysed model.
        batches: checked, and on the model's device.
        probes: without labels, the number of random directions, as for `output_losses`.
        seed: of the directions.
        progress: is called with the number of samples done.

    Yields:
        For some of the samples and one loss, shape (samples, channels), float64.

    Raises:
        CannotScoreError: the model does not run on the samples, or mixes them with channels.
    """
    random = torch.Generator().manual_seed(seed)
    done = 0
    with in_eval_without_grad(graph.module):
        reader = GateReader(graph)
        for batch in batches:
            for part in batch.split():
                yield from reader.read(part, probes, random)
                done += part.size
                progress("score", done, done, {})


class GateReader(fx.Interpreter):
    """Runs the traced model with a gate of one wherever channels are summed over.

    A subclass may watch other tensors on the way: it overrides `watched` and `see`.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        super().__init__(graph.module, garbage_collect_values=True)
        self._channel_graph = graph
        self._places: dict[str, list[tuple[str, int]]] = {}
        for place in gate_places(graph):
            if place.from_input:
                self._places.setdefault(place.node, []).append((place.argument, place.dim))
        self._example_size = Batch(*call_of(graph.module)).size
        self._gates: list[tuple[Tensor, Ids]] = []
        self._samples = 0

    def read(self, batch: Batch, probes: int, random: torch.Generator) -> Iterator[Tensor]:
        """The gradients of one batch; sample by sample where a gate cannot tell samples apart."""
        try:
            outputs = self.run_gated(batch)
        except _MixedSamplesError:
            for k in range(batch.size):
                yield from self.read(batch.rows(k, k + 1), probes, random)
            return
        gates = [gate for gate, _ in self._gates]
        watched = self.watched()
        losses = list(output_losses(self.module, outputs, batch.labels, probes, random))
        for k, loss in enumerate(losses):
            gradients = torch.autograd.grad(
                loss, [*gates, *watched], retain_graph=k + 1 < len(losses), allow_unused=True
            )
            of_gates, of_watched = gradients[: len(gates)], gradients[len(gates) :]
            self.see(of_watched)
            total = torch.zeros(batch.size, self._channel_graph.num_channels, dtype=torch.float64)
            for gradient, (_, channels) in zip(of_gates, self._gates, strict=True):
                if gradient is not None:
                    total.index_add_(1, torch.from_numpy(channels), gradient.double().cpu())
            yield total
        self._gates = []

    def watched(self) -> list[Tensor]:
        """Other tensors of the last run whose gradients are wanted."""
        return []

    def see(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of what is `watched`, None where the loss does not depend on it; called for each loss."""

    def run_gated(self, batch: Batch) -> object:
        """The outputs for a batch; a run that mixes samples stops with an error and counts for nothing."""
        self._gates, self._samples = [], batch.size
        with torch.enable_grad(), running_on(batch, CannotScoreError):
            return self.run(initial_env=placeholder_values(self.graph, batch))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node on gated arguments."""
        replaced: dict[fx.Node, Tensor] = {}
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
        channels = self._channel_graph.labels_of(source.name).dims[d]
        if isinstance(channels, int) or x.shape[d] != len(channels):
            raise CannotScoreError(
                f"the number of channels of {source.name} depends on the number of samples: such a model cannot be "
                "scored on data; use a method that needs none"
            )
        shape = [1] * x.dim()
        shape[d] = x.shape[d]
        if self._samples > 1:
            # The example tells whether the first dimension is the batch; two equal sizes may be a coincidence.
            of_example = source.meta["value"].shape[BATCH_DIM]
            if d == BATCH_DIM or x.shape[BATCH_DIM] != self._samples or of_example != self._example_size:
                raise _MixedSamplesError
            shape[BATCH_DIM] = self._samples
        gate = torch.ones((self._samples, x.shape[d]), dtype=x.dtype, device=x.device, requires_grad=True)
        self._gates.append((gate, channels))
        return x * gate.view(shape)


class _MixedSamplesError(Exception):
    """A tensor's first dimension is not the batch."""

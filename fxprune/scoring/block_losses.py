"""What the outputs lose when blocks are left out, measured on samples."""

from __future__ import annotations

from collections.abc import Collection

import torch

from fxprune.channels import Block, ChannelGraph
from fxprune.data import Batch, run_model
from fxprune.errors import CannotScoreError
from fxprune.layers.contraction import find_parameter
from fxprune.losses import distillation_loss, separated
from fxprune.planning.plan import plan_keeping
from fxprune.running.allocator import keep_freed_memory
from fxprune.running.copies import copy_module
from fxprune.running.eval_mode import in_eval

__all__ = ["BlockLosses"]

# So many samples tell blocks apart. Not tuned.
_SAMPLES = 16


class BlockLosses:
    """What the outputs lose when blocks are left out: what `verify` sets to zero is zero meanwhile."""

    def __init__(self, graph: ChannelGraph, samples: Batch) -> None:
        order = torch.randperm(samples.size, generator=torch.Generator().manual_seed(0))
        self._graph = graph
        self._batches = samples.take(order[:_SAMPLES]).on_device_of(graph.module).split()
        self._model = copy_module(graph.module)
        self._wanted = [self._outputs(batch) for batch in self._batches]

    def _outputs(self, batch: Batch) -> object:
        with torch.no_grad(), in_eval(self._model):
            return separated(self._model, run_model(self._model, batch, CannotScoreError))

    @keep_freed_memory()
    def without(self, blocks: Collection[Block]) -> float:
        """The loss without some blocks, per sample."""
        plan = plan_keeping(self._graph, self._graph.all_but(blocks))
        names = {*plan.kept, *(name for block in blocks for name in block.ends)}
        saved = {name: find_parameter(self._model, name).detach().clone() for name in names}
        total, count = 0.0, 0
        with torch.no_grad():
            for name in names:
                plan.zero_(name, find_parameter(self._model, name))
            for batch, wanted in zip(self._batches, self._wanted, strict=True):
                loss = distillation_loss(self._outputs(batch), wanted, temperature=1.0)
                total, count = total + float(loss) * batch.size, count + batch.size
            for name, before in saved.items():
                find_parameter(self._model, name).copy_(before)
        return total / count

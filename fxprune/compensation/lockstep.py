"""Two graphs run side by side, node by node, on the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx

from fxprune.data import Batch, placeholder_values, running_on
from fxprune.errors import CannotScoreError, FxpruneError
from fxprune.layers.contraction import find_parameter
from fxprune.running import trees
from fxprune.running.one_node import run_node, with_values
from fxprune.running.regions import is_boundary, region, regions_around

__all__ = ["Lockstep", "Runner"]


class Runner:
    """Runs a graph one node at a time on several batches; values are dropped after their last use.

    Args:
        module: the traced model.
        batches: what it runs on.
        raises: the class of the error if it does not.

    Attributes:
        module: the traced model.
        values: the results of nodes, one for each batch.
    """

    def __init__(
        self, module: fx.GraphModule, batches: Sequence[Batch], raises: type[FxpruneError] = FxpruneError
    ) -> None:
        self.module, self._raises = module, raises
        self.values: dict[fx.Node, list[Any]] = {}
        self._batches = batches
        self._modules = dict(module.named_modules())
        self._around = regions_around(module.graph)
        self._last_of: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(list(module.graph.nodes)):
            for source in (node, *node.all_input_nodes):
                if source not in seen:
                    seen.add(source)
                    self._last_of.setdefault(node, []).append(source)
        self._inputs = [placeholder_values(module.graph, batch) for batch in batches]

    def run(self, node: fx.Node) -> list[Any]:
        """Run a node whose inputs have been run; it may be run again before `drop`.

        Raises:
            FxpruneError: the node does not run on a batch.
        """
        values = []
        for number, batch in enumerate(self._batches):
            with running_on(batch, self._raises):
                values.append(self._run_on(node, number))
        self.values[node] = values
        return values

    def drop(self, node: fx.Node) -> None:
        """Forget what is not used after this node."""
        for source in self._last_of.get(node, ()):
            self.values.pop(source, None)

    def _run_on(self, node: fx.Node, number: int) -> Any:
        if node.op == "placeholder":
            # Models may write into their inputs.
            return trees.map_tensors(torch.clone, self._inputs[number][node])
        if node.op == "get_attr":
            return find_parameter(self.module, str(node.target))
        args, kwargs = with_values(node, lambda source: self.values[source][number])
        if node.op == "output":
            return args[0]
        if is_boundary(node):
            # The batches and the other graph are in the same thread: each node enters the regions around it anew.
            return functools.partial(region, *args, **kwargs) if node.target is region else None
        with ExitStack() as stack:
            for around in self._around[node]:
                stack.enter_context(self.values[around][number]())
            return run_node(node, args, kwargs, self._modules.get(str(node.target)))


class Lockstep:
    """The original and a pruned model of it, side by side.

    Nodes correspond by name. The rewritten graph may have nodes that the original lacks, and the other way round.
    """

    def __init__(self, original: fx.GraphModule, pruned: fx.GraphModule, batches: Sequence[Batch]) -> None:
        # Only the original may be unfit for the samples: a pruned model that fails alone is a bug.
        self.original, self.pruned = Runner(original, batches, CannotScoreError), Runner(pruned, batches)

    def __iter__(self) -> Iterator[tuple[fx.Node | None, fx.Node]]:
        """Yield each node of the pruned model, to be run by the caller, with its partner in the original, already run.

        The partner is None for a node that the original lacks.
        """
        ahead = list(self.original.module.graph.nodes)
        names = {node.name: node for node in ahead}
        for node in list(self.pruned.module.graph.nodes):
            partner = names.get(node.name)
            while partner is not None and ahead:
                following = ahead.pop(0)
                self.original.run(following)
                if following is partner:
                    break
                self.original.drop(following)
            yield partner, node
            if partner is not None:
                self.original.drop(partner)
            self.pruned.drop(node)

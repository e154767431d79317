"""Two graphs run side by side, node by node, on the same inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.data import Batch, placeholder_values, running_on
from fxprune.running import trees

__all__ = ["Lockstep", "Runner"]


class Runner:
    """Runs a graph one node at a time on several batches; a value is dropped after its last use.

    Attributes:
        values: what a node gave, one entry per batch.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self.module = module
        self.values: dict[fx.Node, list[Any]] = {}
        self._batches = batches
        self._modules = dict(module.named_modules())
        self._last_of: dict[fx.Node, list[fx.Node]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(list(module.graph.nodes)):
            for source in (node, *node.all_input_nodes):
                if source not in seen:
                    seen.add(source)
                    self._last_of.setdefault(node, []).append(source)
        self._inputs = [placeholder_values(module.graph, batch) for batch in batches]

    def run(self, node: fx.Node) -> list[Any]:
        """Run a node whose inputs have been run; it may be run again before `drop`."""
        values = []
        for number, batch in enumerate(self._batches):
            with running_on(batch):
                values.append(self._run_on(node, number))
        self.values[node] = values
        return self.values[node]

    def drop(self, node: fx.Node) -> None:
        """Forget what is not used after this node."""
        for source in self._last_of.get(node, ()):
            self.values.pop(source, None)

    def _run_on(self, node: fx.Node, number: int) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n][number])
        if node.op == "placeholder":
            # Models may write into their inputs.
            return trees.map_tensors(torch.clone, self._inputs[number][node])
        if node.op == "get_attr":
            return functools.reduce(getattr, str(node.target).split("."), self.module)
        if node.op == "call_module":
            return self._modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "output":
            return args[0]
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        return function(*args, **kwargs)


class Lockstep:
    """The original and the pruned model of it, side by side.

    Nodes of the two correspond by name; a rewritten graph has some nodes more and some less.
    """

    def __init__(self, original: fx.GraphModule, pruned: fx.GraphModule, batches: Sequence[Batch]) -> None:
        self.original, self.pruned = Runner(original, batches), Runner(pruned, batches)

    def __iter__(self) -> Iterator[tuple[fx.Node | None, fx.Node]]:
        """Run and yield the original's node, run before, and the pruned model's node, to be run by the caller."""
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

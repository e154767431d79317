"""The graph so far, run on the example, where values of the input decide how large a tensor is, as `x[mask]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.running import trees
from fxprune.running.one_node import run_node, with_values
from fxprune.running.regions import enter_region, exit_region, region
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.plain_values import digest, in_plain_types, layout_in_plain_types, restored
from fxprune.tracing.scopes import Switch

__all__ = ["ExampleRun"]

_REGIONS = (region, enter_region, exit_region)


class ExampleRun:
    """Runs each node once, in their order: they may write into what others gave."""

    def __init__(
        self,
        builder: GraphBuilder,
        switch: Switch,
        inputs: Mapping[str, Any],
        real_tensor: Callable[[fx.Node], Tensor],
        real_module: Callable[[str], nn.Module],
        training: bool = False,
    ) -> None:
        """
        Args:
            builder: of the graph.
            switch: pauses the recording meanwhile.
            inputs: the real values of the placeholders.
            real_tensor: gives the real tensor of a node that reads one of the model.
            real_module: gives a copy of a real module for its path.
            training: whether that is in training.
        """
        self._builder = builder
        self._switch = switch
        self._inputs = inputs
        self._real_tensor = real_tensor
        self._real_module = real_module
        self._values: dict[fx.Node, Any] = {}
        self._tensors: dict[str, Tensor] = {}
        self._mode = "training" if training else "eval"
        self._read = 0

    def value(
        self, node: fx.Node, read: dict[str, Any], earlier: Mapping[str, Any], *, only_layout: bool = False
    ) -> Any:
        """What a node gives for the example.

        Args:
            node: the last one of the graph.
            read: gets the value, in plain types.
            earlier: what an earlier trace has read, which is not computed again.
            only_layout: whether that is no more than sizes and types.
        """
        self._read += 1
        key = f"{self._mode} {self._read} {digest(node)}"
        with torch._C.DisableTorchFunction():
            if earlier.get(key) is not None:
                read[key] = earlier[key]
                return restored(earlier[key])
            with self._switch.paused(), torch.no_grad():
                for each in self._builder.graph.nodes:
                    if each not in self._values and each.target not in _REGIONS and "check" not in each.meta:
                        self._values[each] = self._run(each)
                value = self._values[node]
                read[key] = (layout_in_plain_types if only_layout else in_plain_types)(value)
                return value

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return trees.map_tensors(torch.clone, self._inputs[str(node.target)])
        if node.op == "get_attr":
            return self._tensor(node)
        module = self._builder.module_of(node, self._real_module)
        return run_node(node, *with_values(node, self._values.__getitem__), module)

    def _tensor(self, node: fx.Node) -> Tensor:
        name = str(node.target)
        if name not in self._tensors:
            self._tensors[name] = self._real_tensor(node).detach().clone()
        return self._tensors[name]

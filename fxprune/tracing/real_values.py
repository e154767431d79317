"""What a recorded node gives in fact, where the model's code asks for it: computed with the real tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.one_node import run_node, with_values

__all__ = ["RealValues", "is_count"]


@dataclass(eq=False)
class RealValues:
    """Real values of nodes, each computed once, when it is asked for.

    Attributes:
        graph: what is being recorded.
        example: the real values of placeholders.
        constants: tensors that the graph has in addition to the model's, by name.
        functions: modules likewise, by path.
        real: the real tensor for the identity of a meta tensor.
        leaf_clone: a real module for the path of a leaf.
    """

    graph: fx.Graph
    example: dict[fx.Node, Any]
    constants: dict[str, Tensor]
    functions: dict[str, nn.Module]
    real: dict[int, Tensor]
    leaf_clone: Callable[[str], nn.Module]
    _known: dict[fx.Node, Any] = field(default_factory=dict)

    def of(self, node: fx.Node) -> Any:
        """The value of a node.

        Raises:
            FxpruneError: the model is on the meta device.
        """
        needed: dict[fx.Node, None] = {}
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in needed and current not in self._known:
                needed[current] = None
                stack.extend(() if _is_layout(current) else current.all_input_nodes)
        for current in [n for n in self.graph.nodes if n in needed]:
            self._known[current] = self._evaluate(current)
        return self._known[node]

    def _evaluate(self, node: fx.Node) -> Any:
        if _is_layout(node):
            return node.meta["value"]
        module = None
        if node.op == "placeholder":
            return self.example[node]
        if node.op == "get_attr":
            name = cast(str, node.target)
            value = self.constants[name] if name in self.constants else self.real[id(node.meta["value"])]
            if value.is_meta:
                raise FxpruneError(f"The value of `{name}` is needed, but the model is on the meta device.")
            return value
        if node.op == "call_module":
            path = cast(str, node.target)
            module = self.functions[path] if path in self.functions else self.leaf_clone(path)
        return run_node(node, *with_values(node, self._known.__getitem__), module)


def is_count(node: fx.Node) -> bool:
    """Whether a whole number is computed from whole numbers only, as the longest of given lengths is."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen or _is_layout(current):
            continue
        seen.add(current)
        tensors = trees.tensors([current.meta["value"]])
        if any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors) or "random" in current.meta:
            return False
        stack.extend(current.all_input_nodes)
    return node.meta["value"].dtype is not torch.bool


def _is_layout(node: fx.Node) -> bool:
    """Whether the node reads what a tensor looks like, which is known without its values."""
    if node.op == "call_method":
        return node.target in ("size", "numel")
    return node.target is getattr and node.args[1] in ("device", "dtype")

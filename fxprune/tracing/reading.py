"""Values while a model is traced: the code asks for that of a tensor, and gets it where the input has no part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.tracing.known_values import in_plain_types, layout_in_plain_types, restored, spelling
from fxprune.tracing.nodes import INPUTS, PARAMETERS, Nodes
from fxprune.tracing.real_values import RealValues, is_count

__all__ = ["DataDependentError", "Reader"]


class DataDependentError(FxpruneError):
    """The model's Python code asked for the value of a tensor that depends on the input."""


class Reader(Nodes):
    """Nodes whose values can be read.

    `leaf_clone` gives a real module for the path of a leaf, and `values` what an earlier trace has read, which is not
    read again.
    """

    def __init__(
        self,
        module: nn.Module,
        real: dict[int, Tensor],
        leaf_clone: Callable[[str], nn.Module],
        values: Mapping[str, Any],
    ) -> None:
        super().__init__(module, real)
        self.values = values
        # None for what does not go into plain types.
        self.values_read: dict[str, Any] = {}
        self.functions: dict[str, nn.Module] = {}
        self._real_values = RealValues(self.graph, self.example, self.constants, self.functions, real, leaf_clone)

    def concrete(self, node: fx.Node, only_layout: bool = False) -> Any:
        """The real value of a node that depends on parameters, buffers and constants only."""
        key = spelling(node)
        if self.values.get(key) is not None:
            self.values_read[key] = self.values[key]
            with torch._C.DisableTorchFunction():
                return restored(self.values[key])
        self.running_leaf += 1
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                value = self._real_values.of(node)
                self.values_read[key] = (layout_in_plain_types if only_layout else in_plain_types)(value)
                return value
        finally:
            self.running_leaf -= 1

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the input has no part in a tensor's values."""
        return self.origin[self.node_of(tensor)] < INPUTS

    def read_value(self, func: Any, tensor: Tensor, *args: Any) -> Any:
        """`bool(tensor)`, `tensor.item()`, ...: answered where the input has no part in it."""
        if self.running_leaf or not self.active:
            return func(tensor, *args)
        node = self.node_of(tensor)
        if self.origin[node] >= INPUTS:
            if func is Tensor.item and is_count(node):
                return self.count(node)
            raise DataDependentError(
                f"`{func.__name__}` asks for the value of a tensor that depends on the model's input"
                f" (node `{node.name}`, shape {tuple(tensor.shape)})"
            )
        if self.origin[node] == PARAMETERS:
            self.notes.append(f"`{func.__name__}` of `{node.name}` in {self.where()} was taken as a constant.")
        with torch._C.DisableTorchFunction():
            return func(self.concrete(node), *args)

    def where(self) -> str:
        """The module that is being run, for messages."""
        return f"`{self.scope[-1][0]}`" if self.scope[-1][0] else "the model itself"

    def count(self, node: fx.Node) -> Any:
        """The number in `node`, computed by the graph; Python sees that of the example, as it does with sizes."""
        with torch._C.DisableTorchFunction():
            value = self.concrete(node).item()
        self.notes.append(
            f"`{node.name}` in {self.where()} is a number that the input gives; "
            "control flow that depends on it is that of the example input."
        )
        return self.adopt(value, self.create_node("call_method", "item", (node,), {}, value, INPUTS))

"""A graph seen along one dimension of each activation: the one that carries channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels import ChannelGraph, Ids, Labels
from fxprune.errors import FxpruneError
from fxprune.layers.batch_norm import has_statistics
from fxprune.layers.layer import Layer, layer_of
from fxprune.running import trees
from fxprune.running.copies import named_tensors
from fxprune.running.one_node import run_node, with_values

__all__ = ["ChannelView", "result_in_eval"]


class ChannelView:
    """Which channels activations carry, and what the weights are between them.

    Args:
        graph: the analysed model.

    Attributes:
        tensors: parameters and buffers by name.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.tensors = named_tensors(graph.module)
        self._modules = dict(graph.module.named_modules())
        self._axes: dict[fx.Node, tuple[int, Ids] | None] = {}
        self._frozen = np.zeros(graph.num_channels, dtype=bool)
        for frozen in graph.frozen:
            self._frozen[frozen.channels] = True
        self._from_parameters: set[fx.Node] = set()
        for node in graph.module.graph.nodes:
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and self._from_parameters.issuperset(sources)):
                self._from_parameters.add(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def axis(self, node: fx.Node) -> tuple[int, Ids] | None:
        """The dimension of an activation that carries channels, and the channels; None if there is not exactly one.

        Frozen channels (often the positions of tokens) count only where there are no others; then the last dimension
        counts.
        """
        if node not in self._axes:
            labels = self.graph.labels.get(node.name)
            dims = labels.dims if isinstance(labels, Labels) and node.op != "get_attr" else ()
            found = [(d, dim) for d, dim in enumerate(dims) if not isinstance(dim, int)]
            free = [(d, dim) for d, dim in found if not self._frozen[dim].all()]
            self._axes[node] = (free or found[-1:])[0] if len(free) <= 1 and found else None
        return self._axes[node]

    def width(self, node: fx.Node) -> int:
        """The number of channels along the axis; 1 where there is none."""
        axis = self.axis(node)
        return 1 if axis is None else len(axis[1])

    def squared_weight(self, node: fx.Node) -> tuple[fx.Node, Tensor] | None:
        """What a convolution or linear layer sums over channels of, and its squared weight, summed over the kernel.

        Returns:
            The input and a tensor (conv groups, outputs of a conv group, inputs of a conv group); None where the node
            is no such layer, mixes something else than channels (as layers over tokens do), or its weight is computed
            from the model's input.

        Raises:
            FxpruneError: the weight cannot be squared.
        """
        layer = layer_of(node, self.graph.module)
        weight = None if layer is None or layer.transposed else self._weight(layer)
        if layer is None or not isinstance(weight, Tensor):
            return None
        square = weight.detach().abs().square().float()
        if not bool(square.sum().isfinite()):
            name = f"{node.target}.weight" if layer.weight is None else layer.weight.name
            large = bool(weight.isfinite().all())
            entries = "entries that are too large to be squared" if large else "NaN or infinite entries"
            raise FxpruneError(f"weight {name} has {entries}: repair it before you prune the model")
        # A linear layer's weight of one dimension has one output.
        square = square.view(1, -1) if square.dim() == 1 else square.flatten(2).sum(2) if square.dim() > 2 else square
        fits = self.width(layer.input) == layer.groups * square.shape[1] and self.width(node) == len(square)
        if not fits or not self._sums_over_channels(node, layer.input):
            return None
        return layer.input, square.view(layer.groups, -1, square.shape[1])

    def _sums_over_channels(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a layer sums over the channels of `source`, and has its own along the same dimension."""
        axis, own = self.axis(source), self.axis(node)
        if axis is None or own is None or own[0] != axis[0]:
            return False
        size = len(self.graph.labels_of(source.name).dims)
        summed = self.graph.contractions.get(node.name, ())
        return any(name == source.name and d % size == axis[0] for name, d in summed)

    def _weight(self, layer: Layer) -> object:
        return layer.module.weight if layer.module is not None else self._constant(layer.weight)

    def _constant(self, node: fx.Node | None) -> object:
        """The value of what is computed from parameters alone, as standardised weights are; None for all else."""
        if node not in self._from_parameters:
            return None
        if node.op == "get_attr":
            return self.tensors.get(str(node.target))
        made = {source: self._constant(source) for source in node.all_input_nodes}
        if any(value is None for value in made.values()):
            return None
        return result_in_eval(node, self.module(node), *with_values(node, made.__getitem__))


def result_in_eval(node: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """The result of a node on other arguments, in eval and without lasting effects; None where it fails."""
    if "mutates" in node.meta:
        args, kwargs = trees.map_tensors(torch.clone, (args, kwargs))
    if module is not None:
        if any(True for _ in module.children()) and not has_statistics(module):
            return None
        module = copy.copy(module)
        module.__dict__["training"] = False
    try:
        return run_node(node, args, kwargs, module)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None

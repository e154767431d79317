"""What each node of a model costs: the terms that the FLOPs of a ChannelGraph are the sum of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from fxprune.channels import ChannelGraph, IdTable, Labels
from fxprune.polynomial import Term
from fxprune.rules import find_rule
from fxprune.rules.registry import Op, Parameters

__all__ = ["evaluate", "node_costs"]


def node_costs(graph: ChannelGraph) -> dict[str, list[Term]]:
    """The terms of each node that costs something and has a rule that tells what, by node name.

    What `analyze` has counted without a rule is not in it.
    """
    known = _Known(graph)
    modules = dict(graph.module.named_modules())
    costs = {}
    for node in _used(graph.module.graph):
        module = modules[str(node.target)] if node.op == "call_module" else None
        # An op that was probed for want of a rule costs what its base costs.
        found = find_rule(node, module) or find_rule(node, module, overridden=True)
        if found is None or found.flops_of is None:
            continue
        op = Op(node, IdTable(), known, module, dict(graph.labels))
        args, kwargs = _arguments(node, graph)
        try:
            terms = found.flops_of(op, graph.labels[node.name], *args, **kwargs)
        except _UNFORESEEN:
            continue
        if terms:
            costs[node.name] = terms
    return costs


# As in the analysis, which counted such a call without its rule.
_UNFORESEEN = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


def evaluate(terms: Iterable[Term], alive: npt.NDArray[np.bool_]) -> int:
    """FLOPs of some terms when these channels are kept."""
    return sum(
        item.coefficient * math.prod(int(np.count_nonzero(alive[factor])) for factor in item.factors) for item in terms
    )


class _Known(Parameters):
    """Labels of parameters, as the analysis has found them."""

    def __init__(self, graph: ChannelGraph) -> None:
        module: nn.Module = graph.module
        self._shapes = {
            name: tuple(tensor.shape)
            for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
            for name, tensor in named
        }
        self._dims = graph.parameters

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def labels(self, name: str, dims: Iterable[int] | None = None) -> Labels:
        """The labels of a parameter, those of other dimensions than `dims` too."""
        found = tuple(self._dims.get(name, self._shapes[name]))
        return Labels(found, (False,) * len(found))


def _arguments(node: fx.Node, graph: ChannelGraph) -> tuple[Any, Any]:
    """The node's arguments as rules take them: labels for tensors, values for all else."""

    def convert(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            has_tensor = _has_tensor(argument.meta["value"])
            return graph.labels[argument.name] if has_tensor else argument.meta["value"]
        if isinstance(argument, torch.Tensor):
            return Labels.plain(argument.shape)
        if isinstance(argument, (tuple, list)):
            return tuple(map(convert, argument))
        if isinstance(argument, slice):
            return slice(convert(argument.start), convert(argument.stop), convert(argument.step))
        return argument

    return convert(node.args), {key: convert(value) for key, value in node.kwargs.items()}


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_has_tensor, value))
    return isinstance(value, torch.Tensor)


def _used(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the output depends on, and those that write into something, in order."""
    used: set[fx.Node] = set()
    stack = [graph.output_node(), *(node for node in graph.nodes if "mutates" in node.meta)]
    while stack:
        node = stack.pop()
        if node not in used:
            used.add(node)
            stack.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in used]

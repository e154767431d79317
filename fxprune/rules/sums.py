"""Which values can be left out of sums: those without which a sum is its other side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, fx, nn

from fxprune.channels import Labels
from fxprune.ops import Trait, traits
from fxprune.rules.needs import Cut
from fxprune.rules.state import State

__all__ = ["one_for_each_sum", "other_summand", "summands"]


def other_summand(total: fx.Node, value: fx.Node) -> fx.Node:
    """What a value is added to in a sum of two."""
    first, second = total.args
    other = second if first is value else first
    assert isinstance(other, fx.Node)
    return other


def summands(graph: fx.Graph, modules: Mapping[str, nn.Module], state: State, refused: dict[Cut, str]) -> Iterator[Cut]:
    """The values that are added to one that can take the place of the sum; `refused` gets the others, and why."""
    for node in graph.nodes:
        if Trait.ADDITION not in traits(node, modules.get(str(node.target))) or len(node.args) != 2 or node.kwargs:
            continue
        first, second = node.args
        if not all(isinstance(x, fx.Node) and isinstance(x.meta["value"], Tensor) for x in (first, second)):
            continue
        if first is not second:
            for value, stays in ((first, second), (second, first)):
                if stays not in state.input_dependent or value not in state.input_dependent:
                    continue
                reason = _why_not_alike(stays, node, state)
                if reason:
                    refused[value, (node,)] = reason
                else:
                    yield value, (node,)


def _why_not_alike(stays: fx.Node, total: fx.Node, state: State) -> str:
    """Why a sum cannot be replaced by what is left of it; empty if it can."""
    left, whole = stays.meta["value"], total.meta["value"]
    if left.shape != whole.shape:
        return f"what is left of the sum has shape {tuple(left.shape)}, not {tuple(whole.shape)}"
    if left.dtype != whole.dtype:
        return f"what is left of the sum is {left.dtype}, not {whole.dtype}"
    carried, summed = state.labels[stays.name], state.labels[total.name]
    if not isinstance(carried, Labels) or not isinstance(summed, Labels) or carried.labelled != summed.labelled:
        # The sum takes of the model's input what its other side has channels for.
        return "what is left of the sum does not carry its channels"
    return "" if state.sizes.same_shape(stays, total) else "what is left of the sum is broadcast for other inputs"


def one_for_each_sum(flops: Mapping[Cut, int], refused: dict[Cut, str]) -> list[Cut]:
    """Of the two sides of a sum one stays: that of fewer FLOPs, of which there are so many for each value."""
    chosen: dict[tuple[fx.Node, ...], Cut] = {}
    for cut in flops:
        other = chosen.setdefault(cut[1], cut)
        if other is not cut:
            more, less = (cut, other) if flops[cut] > flops[other] else (other, cut)
            chosen[cut[1]] = more
            refused[less] = "the other side of the sum is left out instead"
    return list(chosen.values())

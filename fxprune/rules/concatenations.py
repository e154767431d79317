"""Which values can be left out of concatenations: those whose channels can all go, so that every tensor keeps some."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx

from fxprune.channels import Dim, Ids, Labels, labels_in
from fxprune.channels.ids import Resolved
from fxprune.rules.join import cat, joined_by
from fxprune.rules.needs import Cut
from fxprune.rules.op import axis
from fxprune.rules.registry import find_rule
from fxprune.rules.state import State

__all__ = ["Concatenated", "concatenated_values", "without_channels"]


@dataclass(frozen=True, eq=False)
class Concatenated:
    """A value that may be left out of concatenations.

    Attributes:
        ids: of its channels, which go with it.
        channels: the same as channel numbers, each once, ascending.
    """

    ids: Ids
    channels: Ids


def concatenated_values(
    graph: fx.Graph, state: State, resolved: Resolved, refused: dict[Cut, str]
) -> dict[Cut, Concatenated]:
    """The values that are concatenated to others along their channels; `refused` gets those that stay, and why."""
    places: dict[fx.Node, dict[fx.Node, int]] = {}
    mixed: set[fx.Node] = set()
    for node in graph.nodes:
        labels = state.labels[node.name]
        if find_rule(node, None) is cat and isinstance(labels, Labels):
            given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            d = axis(labels, given.meta["value"] if isinstance(given, fx.Node) else given)
            if any(_type_of(value) != _type_of(node) for value in joined_by(node)):
                mixed.add(node)
            for value in joined_by(node):
                places.setdefault(value, {})[node] = d
    found = {}
    for value, dims in places.items():
        labels, d = state.labels[value.name], next(iter(dims.values()))
        if value not in state.input_dependent or not isinstance(labels, Labels) or d not in labels.labelled:
            continue
        cut, ids = (value, tuple(dims)), labels.dims[d]
        assert not isinstance(ids, int)
        channels = np.unique(resolved.channel_of[ids])
        frozen = next((resolved.frozen[k] for k in channels.tolist() if k in resolved.frozen), "")
        if frozen:
            refused[cut] = f"its channels cannot go: {frozen}"
        elif set(dims.values()) != {d}:
            refused[cut] = "it is concatenated along several dimensions"
        elif not mixed.isdisjoint(dims):
            refused[cut] = "it is concatenated to tensors of another type"
        else:
            found[cut] = Concatenated(ids, channels)
    return found


def _type_of(node: fx.Node) -> object:
    value = node.meta["value"]
    return value.dtype if isinstance(value, Tensor) else None


def without_channels(
    state: State,
    resolved: Resolved,
    given: Mapping[Cut, Concatenated],
    inside: Mapping[Cut, Collection[fx.Node | str]],
    flops: Mapping[Cut, int],
) -> dict[Cut, str]:
    """The values that stay, since a tensor would have no channels if they and others were left out; and why.

    Args:
        state: what the rules have found.
        resolved: the channels.
        given: the values that may be left out.
        inside: the nodes, and the names of the parameters and buffers, that go with each.
        flops: of each; where one of several must stay, it is that of the fewest.
    """
    refused: dict[Cut, str] = {}
    holders: dict[int, list[Cut]] = {}
    gone = np.zeros(len(resolved.channel_of), dtype=np.int64)
    for cut, value in given.items():
        gone[value.channels] += 1
        for channel in value.channels.tolist():
            holders.setdefault(channel, []).append(cut)

    def refuse(cuts: Sequence[Cut], reason: str) -> None:
        for cut in cuts:
            refused[cut] = reason
            gone[given[cut].channels] -= 1

    for alone in (True, False):
        for owner, dim in _dimensions(state, resolved):
            while gone[dim].all():
                others = [
                    [cut for cut in holders[k] if cut not in refused and owner not in inside[cut]]
                    for k in np.unique(dim).tolist()
                ]
                if not all(others):
                    break
                if alone:
                    whole = [cut for cut in others[0] if all(cut in each for each in others)]
                    refuse(whole, f"`{owner}`, which stays, would have no channels")
                    break
                least = min(others, key=lambda cuts: sum(flops[cut] for cut in cuts))
                refuse(least, f"`{owner}` would have no channels: others are left out instead")
    return refused


def _dimensions(state: State, resolved: Resolved) -> Iterator[tuple[fx.Node | str, Ids]]:
    """The channels of every labelled dimension of activations, parameters and buffers, with whose they are."""
    converted: dict[int, Ids] = {}
    of_nodes = ((state.nodes[name], labels.dims) for name, tree in state.labels.items() for labels in labels_in(tree))
    every: Iterable[tuple[fx.Node | str, Sequence[Dim]]] = itertools.chain(of_nodes, state.parameters.by_name().items())
    for owner, dims in every:
        for dim in dims:
            if not isinstance(dim, int) and len(dim):
                if id(dim) not in converted:
                    converted[id(dim)] = resolved.channel_of[dim]
                yield owner, converted[id(dim)]

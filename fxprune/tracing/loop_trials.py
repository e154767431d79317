"""Whether a loop over a size does the same in further steps: the model is recorded with more of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.guards import insert_guards
from fxprune.tracing.modes import drop_unused_pieces
from fxprune.tracing.rolling import roll
from fxprune.tracing.runs import Leaves, Recording, Runner

__all__ = ["unconfirmed_loops"]

# Of the steps that are tried: more than what code keeps of the last steps. Not tuned.
_FEWEST = 33


@dataclass(frozen=True)
class _Trial:
    """A graph with one step in place of all, and how many steps each of the loops had that could be written so."""

    graph: fx.Graph
    counts: Mapping[int, int]


def unconfirmed_loops(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> set[int]:
    """The loops that have not given the same graph with more steps.

    What a model's code keeps beside its tensors, as a table of numbers for the steps, is seen in this way only. So is
    what a step takes from the one before, where the example has one step.
    """
    loops = set(range(recorded.builder.loops))
    if not any(map(recorded.builder.repeats, loops)):
        return loops
    first = _try(runner, leaves, kept)
    confirmed: set[int] = set()
    for args, kwargs in _larger(runner.args, runner.kwargs):
        other = _try(replace(runner, args=args, kwargs=kwargs), leaves, kept) if first else None
        if first and other and _same(first.graph, other.graph):
            confirmed |= {loop for loop, count in first.counts.items() if other.counts.get(loop, 0) > count}
        if first and confirmed >= first.counts.keys():
            break
    return loops - confirmed


def _try(runner: Runner, leaves: Leaves, kept: set[str]) -> _Trial | None:
    try:
        recorded = runner.record(leaves, kept)
    except FxpruneError:
        return None
    graph: fx.Graph = recorded.builder.graph
    insert_guards(recorded.builder, recorded.sizes)
    drop_unused_pieces(graph)
    counts = {node: node.args[1] for node in graph.nodes if "loops" in node.meta}
    roll(graph, few=True)
    left = set(graph.nodes)
    return _Trial(graph, {loop: n for node, n in counts.items() if node not in left for loop in node.meta["loops"]})


def _larger(args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Inputs with more entries in dimensions that have the same place and size, the one after the batch first."""
    sizes = dict.fromkeys((d, n) for tensor in trees.tensors((args, kwargs)) for d, n in enumerate(tensor.shape))
    for d, n in sorted(sizes, key=lambda size: size[0] or 99):
        index = torch.arange(max(_FEWEST, n + n // 2)) % max(n, 1)

        def larger(tensor: Tensor, d: int = d, n: int = n, index: Tensor = index) -> Tensor:
            fits = tensor.ndim > d and tensor.shape[d] == n
            return tensor.index_select(d, index.to(tensor.device)) if fits else tensor

        yield trees.map_tensors(larger, (args, kwargs))


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    """Whether two graphs have the same calls with the same arguments."""
    partner: dict[fx.Node, fx.Node] = {}
    if len(one.nodes) != len(other.nodes):
        return False
    for a, b in zip(one.nodes, other.nodes, strict=True):
        if (a.op, a.target) != (b.op, b.target):
            return False
        # After its numbers, a check has names of nodes, for messages.
        length = 2 if a.target is check_as_traced else None
        if fx.node.map_arg((a.args[:length], a.kwargs), partner.__getitem__) != (b.args[:length], b.kwargs):
            return False
        partner[a] = b
    return True

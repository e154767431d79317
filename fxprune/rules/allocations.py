"""What a model allocates for activations as it runs in eval, and what of that exists at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, fx, nn

from fxprune.channels import Labels, LabelTree, labels_in
from fxprune.channels.polynomial import Term, term, with_blocks
from fxprune.ops import Trait, traits
from fxprune.running import trees
from fxprune.running.mode_blocks import modes_of
from fxprune.running.one_node import run_node, with_values

__all__ = ["live_memory"]


def live_memory(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    labels: Mapping[str, LabelTree],
    optional: Mapping[str, Sequence[tuple[int, ...]]],
) -> list[list[Term]]:
    """The bytes of the activations that exist at the same time, at each moment with more of them than before and after.

    A tensor exists from the node that makes it to the last one that reads it, or shares its memory. The inputs of the
    model are the caller's and do not count; weights do not either, nor what an op allocates for itself.

    Args:
        graph: of a traced model.
        modules: the modules that it calls, by path.
        labels: what the values of the nodes carry, by node name.
        optional: the sets of blocks of which nodes need one, as in `ChannelGraph`.
    """
    values = _values(graph, modules)
    of_training = {node for node, (_, in_training) in modes_of(graph).items() if in_training}
    held: set[int] = set()
    made: dict[int, tuple[fx.Node, list[Term]]] = {}
    last: dict[int, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last.update(dict.fromkeys(map(_memory, trees.tensors(values[source])), node))
        tensors, carried = list(trees.tensors(values[node])), list(labels_in(labels.get(node.name)))
        for k, tensor in enumerate(tensors):
            memory = _memory(tensor)
            last[memory] = node
            if node.op in ("placeholder", "get_attr") or node in of_training:
                held.add(memory)
            elif memory not in held and memory not in made:
                own = carried[k] if len(carried) == len(tensors) else Labels.plain(tensor.shape)
                made[memory] = (node, with_blocks([_bytes(tensor, own)], optional.get(node.name, ((),))))
    starting: dict[fx.Node, list[int]] = {}
    ending: dict[fx.Node, list[int]] = {}
    for memory, (node, _) in made.items():
        starting.setdefault(node, []).append(memory)
        ending.setdefault(last[memory], []).append(memory)
    live: dict[int, list[Term]] = {}
    moments: list[list[Term]] = []
    grown = False
    for node in graph.nodes:
        live |= {memory: made[memory][1] for memory in starting.get(node, ())}
        grown = grown or node in starting
        if grown and node in ending:
            moments.append([item for terms in live.values() for item in terms])
            grown = False
        for memory in ending.get(node, ()):
            del live[memory]
    return moments


def _values(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> dict[fx.Node, Any]:
    """The values of the nodes, where those that share memory do: the tracer has not run repeated parts anew."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        values[node] = node.meta["value"]
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or not trees.has_tensor(values[node]):
            continue
        if "mutates" in node.meta or Trait.DROPOUT in traits(node, module):
            values[node] = values[first]
        elif Trait.VIEW in traits(node, module):
            with suppress(Exception):
                values[node] = run_node(node, *with_values(node, values.__getitem__), module)
    return values


def _memory(tensor: Tensor) -> int:
    number: int = tensor.untyped_storage()._cdata
    return number


def _bytes(tensor: Tensor, labels: Labels) -> Term:
    """The bytes of a tensor's memory: those of its entries, unless several entries share them."""
    size = tensor.untyped_storage().nbytes()
    return term(tensor.element_size(), *labels.dims) if size == tensor.nbytes else term(size)

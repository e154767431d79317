"""Inputs that nothing reads once blocks are left out: the samples that they have still count."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator

from torch import Tensor, fx

from fxprune.errors import FxpruneError

__all__ = ["check_samples", "check_unread", "read_inputs"]


@fx.node.has_side_effect
def check_samples(samples: int, others: int, name: str) -> None:
    """Check that an input which nothing reads has as many samples as the others, or one for all of them.

    Args:
        samples: of this input.
        others: those of another input.
        name: of this input.

    Raises:
        FxpruneError: it has not.
    """
    # Without branches, so that a graph which is traced again takes one sample and several.
    if (samples - 1) * (samples - others) != 0:
        raise FxpruneError(
            f"input `{name}` has {samples} samples here, and others have {others}. The parts of the model that read "
            "it were left out, so that the outputs cannot have its samples. Give all inputs the same number of samples"
        )


def read_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The tensors among the inputs of a graph that something reads, and not only their sizes."""
    return [node for node in _inputs(graph) if any(isinstance(user.meta.get("value"), Tensor) for user in node.users)]


def check_unread(graph: fx.Graph, read_before: Collection[fx.Node]) -> None:
    """Put a check into a graph for each input that has lost all its readers, and may have samples."""
    read = read_inputs(graph)
    lost = [node for node in read_before if node not in read]
    if not lost or not read:
        return
    of_others = read[0].meta["value"].shape[0]
    place = [node for node in graph.nodes if node in (*lost, read[0])][-1].next
    while place.op == "placeholder":
        place = place.next
    for node in lost:
        own = node.meta["value"].shape[0]
        # Where the first dimension is none of samples, it broadcasts to nothing that is known.
        if own not in (1, of_others):
            continue
        with graph.inserting_before(place):
            sizes = [graph.call_method("size", (each, 0)) for each in (node, read[0])]
            check = graph.call_function(check_samples, (*sizes, node.name))
        for size, value in zip((*sizes, check), (own, of_others, None), strict=True):
            size.meta["value"] = value


def _inputs(graph: fx.Graph) -> Iterator[fx.Node]:
    containers: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (node.target is operator.getitem and node.args[0] in containers):
            value = node.meta.get("value")
            if not isinstance(value, Tensor):
                containers.add(node)
            elif value.dim():
                yield node

"""Modes that code passes on, as `self.block(x, self.training)`: the model is recorded with parts in different modes.

A part whose code is then not that of the mode which it has read itself follows another part's mode, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx

from fxprune.errors import FxpruneError
from fxprune.tracing.deciders import Deciders
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.modes import is_unused_piece
from fxprune.tracing.runs import Leaves, Recording
from fxprune.tracing.scopes import ModuleCall

__all__ = ["tie_modes_passed_on"]


def tie_modes_passed_on(
    in_eval: Recording, in_training: Recording, deciders: Deciders, leaves: Leaves, kept: set[str]
) -> None:
    """Tie those parts that follow more modes than the one that they have read.

    Args:
        in_eval: the recording of the whole model in eval.
        in_training: that in training.
        deciders: the modules whose modes were read, which are tied.
        leaves: modules that the user wants whole.
        kept: paths of modules that the tracer keeps whole.
    """
    for in_other_mode in _mixtures(deciders.owners()):
        try:
            mixed = replace(in_training.runner, in_other_mode=in_other_mode).record(leaves, kept).builder
        except FxpruneError:
            deciders.tie_all()
            return
        for call in mixed.scopes.calls:
            read = deciders.read_by(call[0])
            if len(modes := {path in in_other_mode for path in read}) == 1:
                expected = (in_eval if modes.pop() else in_training).builder
                if _made_in(call, mixed) != _made_in(call, expected):
                    own = min(read)
                    for path in deciders.owners():
                        if (path in in_other_mode) != (own in in_other_mode):
                            deciders.tie(own, path)


def _mixtures(owners: frozenset[str]) -> Iterator[frozenset[str]]:
    """Parts to put into the other mode: such that each is in another than those around it, and than its neighbours."""
    inner = frozenset(path for path in owners if len(_around(path) & owners) % 2)
    second = frozenset(sorted(owners)[1::2])
    yield from dict.fromkeys(part for some in (inner, second) if some for part in (some, owners - some))


def _around(path: str) -> frozenset[str]:
    """The paths of the modules that a module is in."""
    parts = path.split(".")
    return frozenset(".".join(parts[:end]) for end in range(len(parts))) if path else frozenset()


def _made_in(call: ModuleCall, builder: GraphBuilder) -> list[Any]:
    """What a call of a module computes, written so that it is the same in two recordings."""
    number: dict[fx.Node, str] = {}
    made: list[Any] = []
    for node in builder.graph.nodes:
        if node.op == "get_attr":
            number[node] = "a constant" if node.target in builder.constants else str(node.target)
        elif builder.calls[node] == call and not is_unused_piece(node):
            given = fx.node.map_arg((node.args, node.kwargs), lambda source: number.get(source, "from elsewhere"))
            number[node] = str(len(made))
            made.append((node.op, node.target, repr(given)))
    return made

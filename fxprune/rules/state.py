"""What one analysis has found so far."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from torch import fx, nn

from fxprune.channels import Ids, IdTable, Labels, LabelTree, Size, labels_in, map_labels
from fxprune.rules.other_sizes import OtherSizes, Sizes
from fxprune.rules.parameters import Parameters
from fxprune.tracing.aliasing import alias_roots

__all__ = ["Split", "Splits", "State"]

# A node, the factors of its shape, a dimension, and the number of one of its factors.
Split: TypeAlias = "tuple[str, tuple[int, ...], int, int]"


@dataclass(frozen=True, eq=False)
class Splits:
    """Which factor carries the channels where a dimension is split, as into heads and their width.

    Attributes:
        avoided: the choices that are not to be made.
        chosen: the choices that were made, with the ids in the shape of the factors.
    """

    avoided: frozenset[Split] = frozenset()
    chosen: dict[Split, Ids] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class State:
    """What one analysis has found so far; rules read and change it through an `Op`.

    Attributes:
        ids: the table of ids, with those that are united or frozen.
        parameters: the ids of parameters and buffers.
        nodes: the nodes of the graph, by name.
        roots: for every node the first one that shares its memory.
        splits: the choices where dimensions are split.
        sizes: the sizes of tensors for other inputs.
        labels: what the values of the nodes so far carry, by node name.
        contractions: as in `ChannelGraph`.
        held: as in `ChannelGraph`.
        merged: by the identity of the ids of a merged dimension: the ids, the sizes of the dimensions that were merged,
            and the number of the one with the channels.
        input_dependent: the nodes that are computed from entries of the model's input, not only from its size.
    """

    ids: IdTable
    parameters: Parameters
    nodes: Mapping[str, fx.Node]
    roots: Mapping[fx.Node, fx.Node]
    splits: Splits
    sizes: OtherSizes
    labels: MutableMapping[str, LabelTree] = field(default_factory=dict)
    contractions: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    held: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    merged: dict[int, tuple[Ids, Sequence[Sizes], int]] = field(default_factory=dict)
    input_dependent: set[fx.Node] = field(default_factory=set)
    _sharing: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)

    @staticmethod
    def of(
        traced: fx.GraphModule,
        modules: dict[str, nn.Module],
        splits: Splits,
        sizes: OtherSizes | None = None,
        written: Mapping[str, tuple[bool, ...]] | None = None,
    ) -> State:
        """The state before the first node.

        Args:
            traced: the traced model.
            modules: its modules, by path.
            splits: the choices to avoid.
            sizes: those that an earlier analysis of this model has found.
            written: what that has found of the tensors that the model writes into, as in `Parameters`.
        """
        sizes = sizes or OtherSizes(traced.graph, modules)
        ids = IdTable()
        nodes = {node.name: node for node in traced.graph.nodes}
        parameters = Parameters(traced, ids, written)
        return State(ids, parameters, nodes, alias_roots(traced.graph, modules), splits, sizes)

    def add_contraction(self, node: fx.Node, argument: fx.Node, d: int) -> None:
        """The channels in dimension `d` of an argument are summed over at a node."""
        place = (argument.name, d)
        if place not in (known := self.contractions.get(node.name, ())):
            self.contractions[node.name] = (*known, place)

    def written_by(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The tensors that nodes write into in place, each as the first node that shares its memory."""
        return {self.roots[self.nodes[name]] for node in nodes for name in node.meta.get("mutates", ())}

    def record(self, node: fx.Node, labels: LabelTree, keeps_zeros: bool) -> None:
        """Keep what the value of a node carries.

        Where the node writes into a tensor, removed channels may be anything from there on, in all that share memory
        with it. They stay zero where the node writes nothing but zeros (`keeps_zeros`), or where its result is the
        whole of that memory and zero.
        """
        self.labels[node.name] = labels
        if not keeps_zeros:
            for root in self.written_by([node]):
                written = labels if node.op != "call_module" and self.roots[node] is root else None
                self._forget_zeros(root, written if isinstance(written, Labels) else None)
        self._sharing.setdefault(self.roots[node], []).append(node)

    def _forget_zeros(self, root: fx.Node, written: Labels | None) -> None:
        left: list[fx.Node] = []
        for node in self._sharing.get(root, ()):
            tree = self.labels[node.name] = map_labels(
                lambda label: _overwritten(label, written), self.labels[node.name]
            )
            if any(any(labels.zero) for labels in labels_in(tree)):
                left.append(node)
        self._sharing[root] = left
        name, labels = str(root.target), self.labels[root.name]
        if root.op == "get_attr" and name in self.parameters and isinstance(labels, Labels):
            self.parameters.write(name, labels.zero)


def _overwritten(label: Labels | Size, written: Labels | None) -> Labels | Size:
    """What is left of a label when something of the labels `written` is written, or anything (None)."""
    if not isinstance(label, Labels):
        return label
    if written is None or not _same_dims(label, written):
        return label.never_zero()
    return Labels(label.dims, tuple(map(operator.and_, label.zero, written.zero)))


def _same_dims(one: Labels, other: Labels) -> bool:
    return len(one.dims) == len(other.dims) and all(
        type(a) is type(b) and np.array_equal(a, b) for a, b in zip(one.dims, other.dims, strict=True)
    )

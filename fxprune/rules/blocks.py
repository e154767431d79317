"""Blocks: parts of a graph that can be left out whole, such as the branch of a residual connection.

A value that is added to another one can be left out where it is exactly zero once the parameters at its end are zero:
then the sum is the other value. A value that is concatenated to others can be left out where all of its channels can
go. What serves nothing else goes with it.
"""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxprune.channels import Ids, IdTable, Labels, LabelTree, Size, is_labelled, labels_in, map_labels
from fxprune.channels.graph import Block, NoBlock
from fxprune.channels.polynomial import Term, with_blocks
from fxprune.errors import FxpruneError
from fxprune.ops import Trait, traits
from fxprune.rules.block_names import common_owner, module_of, numbered, owners
from fxprune.rules.concatenations import Concatenated, concatenated_values, without_channels
from fxprune.rules.elementwise import stays_zero
from fxprune.rules.needs import ALWAYS, Cut, Needs, needs_of, serving_only, unneeded
from fxprune.rules.op import Op
from fxprune.rules.probe import probe
from fxprune.rules.registry import find_rule
from fxprune.rules.state import Splits, State
from fxprune.rules.sums import one_for_each_sum, other_summand, summands
from fxprune.running import trees
from fxprune.running.one_node import with_values
from fxprune.tracing.aliasing import counted_inputs
from fxprune.tracing.rolling import has_loops

__all__ = ["Blocks", "find_blocks"]

# The costs of a node are a longer sum the more sets of blocks need it. Not tuned.
_MOST_SETS = 6


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a graph.

    Attributes:
        found: the blocks; their channels are ids.
        refused: the values that are added or concatenated to others and are no blocks.
        costs: the FLOPs of every node, with the blocks as factors.
        optional: as in `ChannelGraph`, with ids.
    """

    found: tuple[Block, ...]
    refused: tuple[NoBlock, ...]
    costs: Mapping[str, Sequence[Term]]
    optional: Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A value that may be left out, with all that serves it alone; of concatenations, with the ids of its channels."""

    inside: tuple[fx.Node, ...]
    ends: tuple[str, ...]
    tensors: tuple[str, ...]
    flops: int
    name: str
    ids: Ids


def find_blocks(
    graph: fx.Graph, modules: Mapping[str, nn.Module], state: State, costs: Mapping[str, Sequence[Term]]
) -> Blocks:
    """Find what can be left out of a graph.

    Args:
        graph: of a traced model, through which the rules have gone.
        modules: the modules that it calls, by path.
        state: what the rules have found; each block gets an id of its own.
        costs: the FLOPs of every node that has any, by node name.
    """
    refused: dict[Cut, str] = {}
    sums, joined, resolved = list[Cut](), dict[Cut, Concatenated](), state.ids.resolve()
    if not has_loops(graph):
        sums = list(summands(graph, modules, state, refused))
        joined = concatenated_values(graph, state, resolved, refused)
    owned = _Owned(graph, modules, state)
    place, idle = {node: k for k, node in enumerate(graph.nodes)}, unneeded(graph)
    candidates: dict[Cut, _Candidate] = {}
    for cut in (*sums, *joined):
        made = owned.candidate(cut[0], serving_only(cut, place, idle), costs, joined.get(cut), resolved.channel_of)
        if isinstance(made, str):
            refused[cut] = made
        else:
            candidates[cut] = made
    joined = {cut: value for cut, value in joined.items() if cut in candidates}
    inside: dict[Cut, set[fx.Node | str]] = {cut: {*candidates[cut].inside, *candidates[cut].tensors} for cut in joined}
    empty = without_channels(state, resolved, joined, inside, {cut: candidates[cut].flops for cut in joined})
    refused |= empty
    chosen = one_for_each_sum({cut: candidates[cut].flops for cut in sums if cut in candidates}, refused)
    chosen = sorted([*chosen, *(cut for cut in joined if cut not in empty)], key=lambda cut: place[cut[1][0]])
    crowded = {0}
    while crowded:
        numbers = {(value, reader): k for k, (value, readers) in enumerate(chosen) for reader in readers}
        needs, crowded = needs_of(graph, state.roots, numbers, _MOST_SETS)
        # A node whose size alone is read stays, and fvcore does not count it.
        counted, also = needs_of(graph, state.roots, numbers, _MOST_SETS, counted_inputs)
        crowded |= also
        for k, cut in enumerate(chosen):
            if any(k not in each for node in candidates[cut].inside for each in needs[node]):
                crowded.add(k)
        refused |= {chosen[k]: "what serves it serves others too" for k in crowded}
        chosen = [cut for k, cut in enumerate(chosen) if k not in crowded]
    ids = [int(number) for number in state.ids.fresh(len(chosen))]
    found = numbered([_block(cut, candidates[cut], number) for cut, number in zip(chosen, ids, strict=True)])
    factored = {
        name: with_blocks(terms, _in_ids(counted[state.nodes[name]], ids) or ((),)) for name, terms in costs.items()
    }
    optional = {node.name: _in_ids(sets, ids) for node, sets in needs.items() if sets and sets != ALWAYS}
    ended = {reader for cut in chosen if cut not in joined for reader in cut[1]}
    no_blocks = tuple(
        NoBlock(value.name, reason) for (value, readers), reason in refused.items() if ended.isdisjoint(readers)
    )
    return Blocks(found, no_blocks, factored, optional)


def _in_ids(sets: Needs, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Sets of cuts as those of the blocks' ids, in a fixed order."""
    return tuple(sorted(tuple(sorted(ids[k] for k in each)) for each in sets))


def _block(cut: Cut, made: _Candidate, number: int) -> Block:
    value, readers = cut
    return Block(
        name=made.name,
        channel=number,
        channels=np.append(made.ids, number),
        nodes=tuple(node.name for node in made.inside),
        value=value.name,
        readers=tuple(node.name for node in readers),
        stays="" if len(made.ids) else other_summand(readers[0], value).name,
        ends=made.ends,
        tensors=made.tensors,
        flops=made.flops,
    )


@dataclass(frozen=True)
class _Zeroed:
    """What a value carries when some parameters are zero, and these parameters."""

    labels: LabelTree
    ends: tuple[str, ...]


@dataclass(frozen=True)
class _Inside:
    """The nodes and tensors of a candidate, and which of its nodes parameters make zero."""

    nodes: set[fx.Node]
    tensors: frozenset[str]
    known: dict[fx.Node, _Zeroed | None] = field(default_factory=dict)


class _Owned:
    """Which parameters and buffers each part of a graph has for itself, and which of them end it."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], state: State) -> None:
        self._modules = modules
        self._state = state
        self._dims = state.parameters.by_name()
        # By path of a module, how many matrices of weights it has.
        self._counts = Counter(path for name in filter(self._is_matrix, self._dims) for path in owners(name))
        self._readers: dict[str, set[fx.Node]] = {}
        for node in graph.nodes:
            for name in self._names(node):
                self._readers.setdefault(state.parameters.canonical(name), set()).add(node)

    def _names(self, node: fx.Node) -> list[str]:
        """The parameters and buffers that a node reads."""
        if node.op == "get_attr":
            return [str(node.target)] if str(node.target) in self._state.parameters else []
        if node.op != "call_module":
            return []
        module = self._modules[str(node.target)]
        named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        return [f"{node.target}.{name}" for name, _ in named]

    def candidate(
        self,
        value: fx.Node,
        inside: list[fx.Node],
        costs: Mapping[str, Sequence[Term]],
        joined: Concatenated | None,
        channel_of: Ids,
    ) -> _Candidate | str:
        """What goes with a value, or why the value cannot be left out.

        Args:
            value: is added or concatenated to others.
            inside: the nodes that serve nothing else.
            costs: the FLOPs of every node.
            joined: the channels of a value that is concatenated.
            channel_of: the channel of every id.
        """
        if not inside:
            return "it is used elsewhere too"
        flops = sum(_total(item) for node in inside for item in costs.get(node.name, ()))
        if not flops:
            return "it has no FLOPs"
        within = set(inside)
        names = dict.fromkeys(name for node in inside for name in self._names(node))
        tensors = tuple(n for n in names if self._readers[self._state.parameters.canonical(n)] <= within)
        if joined is not None:
            ends = tuple(name for name in tensors if self._is_on(name, joined.channels, channel_of))
            if not ends:
                return "no parameters at its end have its channels"
            name = self._name_of(tensors, ends, apart=True)
            return _Candidate(tuple(inside), ends, tensors, flops, name, joined.ids)
        inputs = (source for node in inside for source in node.all_input_nodes if source.op == "placeholder")
        if alone := next((source.name for source in inputs if _is_read_only_in(within, source)), ""):
            # Without it a sum would have the size of what stays.
            return f"it alone reads the input {alone!r}, which may have more samples"
        zeroed = self._zeroed(value, _Inside(within, frozenset(tensors)))
        if zeroed is None:
            return "no parameters at its end make it zero"
        name = self._name_of(tensors, zeroed.ends)
        return _Candidate(tuple(inside), zeroed.ends, tensors, flops, name, np.empty(0, dtype=np.int64))

    def _is_on(self, name: str, channels: Ids, channel_of: Ids) -> bool:
        """Whether a dimension of a parameter or buffer has no other channels than these."""
        dims = self._dims.get(name, ())
        return any(not isinstance(dim, int) and np.isin(channel_of[dim], channels).all() for dim in dims)

    def _name_of(self, tensors: Sequence[str], ends: Sequence[str], apart: bool = False) -> str:
        """The innermost module that has all matrices of weights of a block, or that at its end.

        Args:
            tensors: all parameters and buffers of the block.
            ends: those at its end.
            apart: whether a module does not count that has matrices of others too.
        """
        own = [name for name in tensors if self._is_matrix(name)]
        counts = Counter(path for name in own for path in owners(name)) if apart else self._counts
        for name in filter(None, map(common_owner, (own or ends, ends) if apart else (own or ends,))):
            if counts[name] == self._counts[name]:
                return name
        last = [*ends, *own][-1]
        return module_of(last) or last

    def _is_matrix(self, name: str) -> bool:
        tensor = self._state.parameters.tensor(name)
        return tensor.dim() > 1 and isinstance(tensor, nn.Parameter)

    def _zeroed(self, node: fx.Node, inside: _Inside) -> _Zeroed | None:
        """What a node's value carries once the parameters at its end are zero, with these; None if it is not zero."""
        if node not in inside.nodes or not node.op.startswith("call"):
            return None
        if node not in inside.known:
            inside.known[node] = None
            inside.known[node] = self._try_zeroed(node, inside)
        return inside.known[node]

    def _try_zeroed(self, node: fx.Node, inside: _Inside) -> _Zeroed | None:
        sources = node.all_input_nodes[:1] if Trait.READS_FIRST in traits(node) else node.all_input_nodes
        own = [name for each in (node, *(x for x in sources if x.op == "get_attr")) for name in self._names(each)]
        if not inside.tensors.issuperset(own):
            return None
        tensors = {name: self._state.parameters.tensor(name) for name in own}
        parameters = [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)]
        others = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        labels_here = self._state.labels[node.name]
        if parameters and isinstance(labels_here, Labels) and self._is_scaled(node):
            return _Zeroed(Labels(labels_here.dims, tuple(map(is_labelled, labels_here.dims))), tuple(parameters))
        if (alone := self._by_one_parameter(node, sources, tensors)) is not None:
            return alone
        for trial in self._trials(node, sources, inside, any(tensors[name].dim() > 1 for name in parameters)):
            ends, labels = dict.fromkeys(parameters or others), dict[str, LabelTree]()
            for source in sources:
                below = trial.get(source)
                if below is not None:
                    labels[source.name] = below.labels
                    ends |= dict.fromkeys(below.ends)
                elif source.op != "get_attr":
                    labels[source.name] = map_labels(_not_zero, self._state.labels[source.name])
            made = self._carried(node, labels) if ends and (trial or own) else None
            if any(any(each.zero) for each in labels_in(made)):
                return _Zeroed(made, tuple(ends))
        return None

    def _by_one_parameter(
        self, node: fx.Node, sources: Sequence[fx.Node], tensors: Mapping[str, Tensor]
    ) -> _Zeroed | None:
        """What a node carries if one of several parameters alone makes it zero: of weight norm the lengths do.

        Then the others need not be zero: directions would be divided by their norm. The smallest one is taken.
        """
        stored = (x for x in reversed(sources) if x.op == "get_attr")
        # Of two of one size the last comes first: lengths are given after directions.
        read = [x for x in stored if isinstance(tensors.get(str(x.target)), nn.Parameter)]
        for one in sorted(read, key=lambda x: tensors[str(x.target)].numel()) if len(read) > 1 else []:
            others = (x for x in sources if x is not one)
            made = self._carried(node, {x.name: map_labels(_not_zero, self._state.labels[x.name]) for x in others})
            if any(any(each.zero) for each in labels_in(made)):
                return _Zeroed(made, (str(one.target),))
        return None

    def _trials(
        self, node: fx.Node, sources: Sequence[fx.Node], inside: _Inside, has_matrix: bool
    ) -> Iterator[dict[fx.Node, _Zeroed]]:
        """Which inputs may be made zero as well as the parameters: none, each alone, all."""
        yield {}
        if not has_matrix:
            # If not even a matrix of zeros makes the result zero, inputs that are zero do not.
            found = {source: made for source in sources if (made := self._zeroed(source, inside)) is not None}
            yield from ({source: made} for source, made in found.items())
            if len(found) > 1:
                yield found

    def _op(self, node: fx.Node, labels: Mapping[str, LabelTree]) -> tuple[Op, tuple[Any, ...], dict[str, Any]]:
        """A node with its arguments as rules take them, apart from the analysis; some inputs carry something else."""
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        known = self._state
        splits = Splits(known.splits.avoided, dict(known.splits.chosen))
        state = replace(
            known, ids=IdTable(), labels=ChainMap(dict(labels), known.labels), contractions={}, held={},
            merged=dict(known.merged), splits=splits,
        )  # fmt: skip
        op = Op(node, module, state)

        def value_of(source: fx.Node) -> object:
            value = source.meta["value"]
            return op.labels_of[source.name] if trees.has_tensor(value) else value

        return op, *with_values(node, value_of)

    def _carried(self, node: fx.Node, labels: Mapping[str, LabelTree]) -> LabelTree:
        """What the rule of a node makes of such inputs; None where it has none or does not support this."""
        op, args, kwargs = self._op(node, labels)
        rule = find_rule(node, op.module)
        try:
            if rule is None:
                given = {source: op.labels_of[source.name] for source in node.all_input_nodes}
                return probe(op, {source: x for source, x in given.items() if isinstance(x, Labels)})
            made: LabelTree = rule.propagate(op, *args, **kwargs)
        except (FxpruneError, TypeError, ValueError):
            return None
        return made

    def _is_scaled(self, node: fx.Node) -> bool:
        """Whether a node is zero if one of the parameters of a single entry that it reads is."""
        tensors = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, fx.Node)]
        tensors = [x for x in tensors if isinstance(x.meta["value"], Tensor)]
        single = tuple(x.op == "get_attr" and x.meta["value"].numel() == 1 for x in tensors)
        if Trait.ELEMENTWISE not in traits(node) or not any(single):
            return False
        op, args, kwargs = self._op(node, {})
        return stays_zero(op, args, kwargs, single)


def _is_read_only_in(within: Set[fx.Node], source: fx.Node) -> bool:
    """Whether no other nodes than these read the entries of an input that has dimensions."""
    value = source.meta.get("value")
    readers = [user for user in source.users if isinstance(user.meta.get("value"), Tensor)]
    return isinstance(value, Tensor) and value.dim() > 0 and within >= set(readers)


def _total(item: Term) -> int:
    return item.coefficient * math.prod(map(len, item.factors))


def _not_zero(label: Labels | Size) -> Labels | Size:
    return label.never_zero() if isinstance(label, Labels) else label

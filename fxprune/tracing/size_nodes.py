"""Sizes and the numbers computed from them: their nodes in the graph, and the guards that they need."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx

from fxprune.tracing.fixed_sizes import Fixed, all_fixed, fixed_sizes
from fxprune.tracing.graph_builder import GraphBuilder, Origin, computed_from
from fxprune.tracing.loop_watch import Watch
from fxprune.tracing.loops import loop_index
from fxprune.tracing.scopes import ModuleCall, Switch
from fxprune.tracing.sizes import TracedInt, TracedNumber, number_of_sizes, plain, read_size, traced_number
from fxprune.tracing.user_code import Place, constructs_tensor, library_of_code, place_in_model

__all__ = ["RESIZES", "Guard", "SizeNodes", "are_fixed", "leaves_of"]

# Among the places where another branch is taken: images are resized where they have another size, and padded where
# something is missing to a multiple.
RESIZES = "resized where needed"


@dataclass(frozen=True)
class Guard:
    """`function(*operands)` was `traced`, and the code went on accordingly; `call` is the module call that did.

    Where it is the number of steps of a loop, `loop` is the number of that. Where a size was found to be one that the
    code names, or not to be it, `place` is where. Where a number went to code of an installed package that has none of
    the model's parts, `elsewhere` is true: that code knows of no size which is special for the model.
    """

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    traced: Any
    call: ModuleCall
    loop: int | None = None
    place: Place | None = None
    elsewhere: bool = False

    @property
    def divisor(self) -> int | None:
        """What the code asks sizes to be multiples of; None where it asks something else."""
        remainder = _remainder(self.operands)
        return None if remainder is None else remainder.operands[1]

    @property
    def finds_size(self) -> bool:
        """Whether a size was found to be the one that the code names at `place`, or a multiple of that."""
        if self.divisor is not None:
            return bool(plain(_remainder(self.operands)) == 0)
        if _asks_for_one(self.function, self.operands):
            return bool(self.traced == (self.function in _BELOW))
        return self.function not in _EQUAL or self.traced == (self.function is operator.eq)

    @property
    def edge(self) -> int:
        """1 or -1 where the size is the smallest or the largest one for which the code goes this way; else 0."""
        there = _has_edge(self.function, self.operands) and plain(self.operands[0]) == plain(self.operands[1])
        return (1 if self.function in _UP else -1) if there else 0

    @property
    def named(self) -> tuple[int, int]:
        """The number that the code names, and the size that was found to be that one or not to be it."""
        if self.divisor is not None:
            return self.divisor, self.divisor
        first, second = map(plain, self.operands)
        if _asks_for_one(self.function, self.operands):
            return 1, first
        if _rounds(self.operands):
            return (first, second) if self.operands[1].function is read_size else (second, first)
        return (first, second) if _is_named(self.operands[0]) or first == 1 else (second, first)


_EQUAL = (operator.eq, operator.ne)
_BELOW = (operator.le, operator.lt)
# What holds for the other way of the code, and at the edge between both.
_WITH_EDGE = {operator.lt: operator.le, operator.le: operator.ge, operator.gt: operator.ge, operator.ge: operator.le}
_STRICT = (operator.lt, operator.gt)
# Those for which the code goes the same way for larger sizes, where it does at the edge.
_UP = (operator.lt, operator.ge)
# More comparisons told otherwise than any model has calls that compare; not tuned.
_MOST_TOLD = 1_000


class SizeNodes:
    """Turns sizes into traced numbers, and traced numbers into nodes once a torch call takes them.

    Attributes:
        guards: what the model's code relied on.
        constructs: whether a size went into a `torch.Tensor(size)`.
        filled: multiples, and the sizes of which the code was told that they are none.
        resizes: whether images of the right size are resized or padded, because of a branch for other sizes.
    """

    def __init__(self, builder: GraphBuilder, switch: Switch, otherwise: AbstractSet[Place] = frozenset()) -> None:
        """
        Args:
            builder: of the graph.
            switch: whether the run goes on.
            otherwise: where sizes are said to be others than those that the code names.
        """
        self._otherwise = otherwise
        self._told = 0
        self.filled: set[tuple[Any, ...]] = set()
        self.constructs = False
        self.resizes = RESIZES in otherwise
        self.guards: list[Guard] = []
        self._packages = {"", *(type(module).__module__.partition(".")[0] for module in builder.root.modules())}
        self._builder = builder
        self._switch = switch
        self._sizes: dict[tuple[fx.Node, int], TracedInt] = {}
        self._fixed: dict[fx.Node, Fixed] = {}
        # The last node of those that read a size of a node.
        self._last_reader: dict[fx.Node, fx.Node] = {}

    @property
    def active(self) -> bool:
        """Whether the run goes on."""
        return self._switch.active

    def size(self, node: fx.Node, dim: int, value: int) -> TracedInt:
        """The size of a node's tensor in one dimension."""
        size = self._sizes.get((node, dim))
        if size is None:
            size = self._sizes[node, dim] = traced_number(self, read_size, (node, dim), value)
        return size

    def read_sizes(self) -> dict[tuple[str, int], TracedInt]:
        """The sizes that were read, by the names of their nodes and dimensions."""
        return {(node.name, dim): size for (node, dim), size in self._sizes.items()}

    def numel(self, tensor: Tensor) -> Any:
        """How many entries a tensor has, as a product of its sizes."""
        node = self._builder.node_of(tensor)
        sizes = [self.size(node, i, size) for i, size in enumerate(tensor.shape)]
        return functools.reduce(operator.mul, sizes) if sizes else 1

    def number_of(self, node: fx.Node, value: float) -> Any:
        """The number that a node gives, as a traced one."""
        number = traced_number(self, operator.pos, (value,), value)
        number.cached = node
        return number

    def number_node(self, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> fx.Node:
        """The node that computes a traced number."""
        create = self._builder.create_node
        if function is read_size:
            source, dim = operands
            after = self._last_reader.get(source, source)
            while after.next.op == "placeholder":
                after = after.next
            # Computed where the tensor is, so that a late use of a size does not keep the tensor alive.
            with self._builder.graph.inserting_after(after):
                node = create("call_method", "size", (source, dim), {}, value, Origin.PARAMETERS)
            self._last_reader[source] = node
            return node
        args = _in_graph(operands)
        given: list[fx.Node] = []
        fx.node.map_arg(args, given.append)
        origin = max((self._builder.origin[node] for node in given), default=Origin.CONSTANTS)
        return create("call_function", function, args, {}, value, origin)

    def from_end(self, node: fx.Node, value: Tensor, index: int | fx.Node) -> Tensor:
        """A piece of what a node gives, by its negative index or that of a step: right at other sizes too."""
        with self._switch.paused():
            piece = value.detach()
        self._builder.bind(piece, self._builder.create_part(operator.getitem, node, index, value))
        return piece

    def guard(
        self, function: Callable[..., Any], operands: tuple[Any, ...], traced: Any, place: Place | None = None
    ) -> None:
        """From here on the graph relies on `function(*operands)` being `traced`."""
        if self._switch.on:
            operands = tuple(map(self._without_index, operands))
            self.constructs |= function is operator.pos and constructs_tensor()
            elsewhere = function is operator.pos and library_of_code() not in self._packages
            self.guards.append(Guard(function, operands, traced, self._builder.scopes.current, None, place, elsewhere))

    def compare(self, function: Callable[..., Any], operands: tuple[Any, ...], outcome: bool) -> bool:
        """What the model's code is told of a comparison: the outcome, on which the graph then relies, or the other."""
        sizes = [operand for operand in operands if not _is_named(operand)]
        # Products and sums of sizes may be the same for other sizes, and remainders are often 0 or 1.
        may_branch = len(sizes) == 1 and (
            sizes[0].function is read_size or (len(_read(sizes[0])) == 1 and max(map(plain, operands)) > 1)
        )
        # As those of two tensors of which one is repeated where they differ, or padded where it is smaller.
        # What is done where `squeeze()` leaves fewer dimensions names those that it drops.
        of_rank = len(sizes) == 1 and sizes[0].function is number_of_sizes
        may_branch |= of_rank
        of_two = len(sizes) == 2 and all(each.function is read_size for each in sizes)
        rounds = _rounds(operands)
        may_branch |= (of_two or rounds) and function in _EQUAL
        orders = of_two and function not in _EQUAL
        has_edge = may_branch and _has_edge(function, operands)
        edge = has_edge and plain(operands[0]) == plain(operands[1])
        remainder = _remainder(operands)
        may_branch |= remainder is not None
        finds_it = may_branch and _finds_size(function, operands, outcome)
        names_it = may_branch and function in _EQUAL and (rounds or not of_two or 1 in map(plain, operands))
        names_it |= may_branch and _asks_for_one(function, operands)
        named = finds_it or orders or edge or names_it or remainder is not None
        place = place_in_model() if (named or (may_branch and self._otherwise)) and self._switch.on else None
        if place is not None and self._never_change(operands):
            # Code that several modules share asks for such sizes, too.
            place = None
        if place is not None and orders:
            # Which of them is smaller may be another one at another size: what is told belongs to the place.
            for told in (True, False):
                if f"{place} {told}" in self._otherwise:
                    return self._tell(told, place)
            place = f"{place} {not outcome}"
        elif place is not None and has_edge:
            told = function in _STRICT
            if f"{place} {told}" in self._otherwise:
                reached = _WITH_EDGE[function](*map(plain, operands))
                self.guard(_WITH_EDGE[function], operands, reached)
                return self._tell(reached == told, place)
            place = f"{place} {told}"
        elif place in self._otherwise:
            if remainder is not None and self.resizes:
                self.filled.add(_multiple_and_sizes(remainder))
            return self._tell((outcome != finds_it) != of_rank, place)
        place = place if named else None
        self.guard(function, operands, outcome, place)
        return outcome

    def _never_change(self, operands: tuple[Any, ...]) -> bool:
        with self._switch.paused():
            self._fixed = fixed_sizes(self._builder.graph, self._builder.module, self._fixed)
        return are_fixed(operands, self._fixed)

    def fills(self, remainder: TracedNumber, multiple: int) -> bool:
        """Whether the code was told, only since that may be so, that something remains."""
        return _multiple_and_sizes(remainder) in self.filled and remainder.operands[1] == multiple

    def _tell(self, told: bool, place: Place | None) -> bool:
        """What the code is told in place of the outcome."""
        self._told += 1
        if self._told > _MOST_TOLD:
            raise RuntimeError(f"the loop at {place} goes on until a size is another one")
        return told

    def _without_index(self, operand: Any) -> Any:
        """An operand as it is in this step of a loop; the other steps need not be like it."""
        if isinstance(operand, (tuple, list)):
            return type(operand)(map(self._without_index, operand))
        if not isinstance(operand, TracedNumber):
            return operand
        if operand.function is loop_index:
            self._builder.single_loops.add(operand.operands[0])
            return plain(operand)
        operands = tuple(map(self._without_index, operand.operands))
        same = all(map(operator.is_, operands, operand.operands))
        return operand if same else traced_number(self, operand.function, operands, plain(operand))

    def loop(self, count: TracedInt, start: int, item: Callable[[TracedInt], Any] = lambda step: step) -> Iterator[Any]:
        """The steps of a loop from `start` on, or an item for each; each node remembers its step."""
        builder, outer, watch = self._builder, self._builder.step, Watch()
        number, end = builder.loops, plain(count)
        builder.loops += 1
        if outer is not None:
            builder.single_loops.add(outer[0])
        self.guards.append(Guard(operator.pos, (count,), end, builder.scopes.current, number))
        for k in range(start, end):
            builder.step = number, k - start
            if watch.is_open(sys._getframe(1)):
                builder.single_loops.add(number)
            try:
                yield item(traced_number(self, loop_index, (number, k), k))
            finally:
                builder.step = outer
        builder.finished_loops.add(number)


def are_fixed(operands: tuple[Any, ...], fixed: Mapping[fx.Node, Fixed]) -> bool:
    """Whether no input of another size changes these numbers."""
    return all(all_fixed(_fixed_size(leaf, fixed)) for leaf in leaves_of(operands))


def leaves_of(operands: tuple[Any, ...]) -> Iterator[TracedNumber]:
    """The numbers read from tensors that the operands are computed from."""
    for operand in operands:
        if isinstance(operand, (tuple, list)):
            yield from leaves_of(tuple(operand))
        elif isinstance(operand, TracedNumber):
            if operand.cached is None and operand.function is not read_size:
                yield from leaves_of(operand.operands)
            else:
                yield operand


def _fixed_size(leaf: TracedNumber, fixed: Mapping[fx.Node, Fixed]) -> Fixed:
    if leaf.function is read_size:
        node, dim = leaf.operands
        sizes = fixed[node]
        return sizes[dim] if isinstance(sizes, tuple) else sizes
    return fixed.get(leaf.node(), False)


def _read(operand: Any) -> set[tuple[fx.Node, int]]:
    """The sizes that a number is computed from, each as node and dimension."""
    if not isinstance(operand, TracedNumber):
        return set()
    if operand.function is read_size:
        return {operand.operands}
    parts = [part for given in operand.operands for part in (given if isinstance(given, (tuple, list)) else (given,))]
    return set().union(*map(_read, parts))


def _multiple_and_sizes(remainder: TracedNumber) -> tuple[Any, ...]:
    return remainder.operands[1], frozenset(_read(remainder))


def _is_named(operand: Any) -> bool:
    """Whether the model has a number in its code, or as the size of one of its tensors."""
    return not isinstance(operand, TracedNumber) or _is_of_table(operand)


def _is_of_table(operand: Any) -> bool:
    """Whether a number is computed from sizes of the model's tensors, or of what is made of these alone."""
    sources = {node for node, _ in _read(operand)}
    return bool(sources) and not any(
        each.op == "placeholder" for node in sources for each in computed_from(node, lambda n: n.all_input_nodes)
    )


def _remainder(operands: tuple[Any, ...]) -> TracedNumber | None:
    """What remains of a size, where the code asks whether that is nothing, as for `if size % 8: pad(...)`."""
    sizes = [each for each in operands if isinstance(each, TracedNumber) and each.function is operator.mod]
    if len(operands) != 2 or len(sizes) != 1 or not _read(sizes[0]):
        return None
    (other,) = (operand for operand in operands if operand is not sizes[0])
    divisor = sizes[0].operands[1]
    named = not isinstance(other, TracedNumber) and other in (0, 1) and not isinstance(divisor, TracedNumber)
    return sizes[0] if named and isinstance(divisor, int) and divisor > 1 else None


def _asks_for_one(function: Callable[..., Any], operands: tuple[Any, ...]) -> bool:
    """Whether the code asks if a size is 1, as in `if x.shape[0] > 1`, for there is no smaller one."""
    more, two = function in (operator.gt, operator.le), function in (operator.ge, operator.lt)
    return (more or two) and type(operands[-1]) is int and operands[-1] == (1 if more else 2)


def _has_edge(function: Callable[..., Any], operands: tuple[Any, ...]) -> bool:
    """Whether the code asks if a size is below or above a number that it names."""
    named = [operand for operand in operands if not isinstance(operand, TracedNumber)]
    special = _asks_for_one(function, operands) or _remainder(operands) is not None
    return function in _WITH_EDGE and len(named) == 1 and type(named[0]) is int and not special


def _rounds(operands: tuple[Any, ...]) -> bool:
    """Whether the code compares a size with another number that is computed from it, as the next multiple of 8."""
    traced = [operand for operand in operands if isinstance(operand, TracedNumber)]
    if len(operands) != 2 or len(traced) != 2 or traced[0].function is traced[1].function:
        return False
    return any(each.function is read_size for each in traced) and len(_read(traced[0]) | _read(traced[1])) == 1


def _finds_size(function: Callable[..., Any], operands: tuple[Any, ...], outcome: bool) -> bool:
    """Whether a size is found to be the one that the code names, or a table of the model to be large enough for it."""
    if (remainder := _remainder(operands)) is not None:
        return bool(plain(remainder) == 0)
    if function in _EQUAL:
        return outcome == (function is operator.eq)
    if _asks_for_one(function, operands):
        return outcome == (function in _BELOW)
    first, second = map(_is_of_table, operands)
    return (first or second) and outcome == ((function in (operator.ge, operator.gt)) == first)


def _in_graph(operand: Any) -> Any:
    if isinstance(operand, (tuple, list)):
        return tuple(map(_in_graph, operand)) if isinstance(operand, tuple) else [*map(_in_graph, operand)]
    if isinstance(operand, TracedNumber):
        return operand.node()
    return operand.item() if isinstance(operand, np.generic) else operand

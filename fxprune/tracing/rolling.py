"""One step in place of all steps of a loop, where they are alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune.running import trees
from fxprune.tracing.checks import check_as_traced, check_rank
from fxprune.tracing.graph_builder import computed_from, reads_layout, reads_size
from fxprune.tracing.loops import append, end_steps, joined, keep, loop_index, new_list, next_value, steps

__all__ = ["alike_in_steps", "has_loops", "roll"]

# With fewer steps alike, the next may be another, unless it was seen that it is not.
_FEWEST_STEPS = 3


def alike_in_steps(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """For a node that was made in a loop, the nodes at its place in all steps but the first."""
    made: dict[int, dict[int, list[fx.Node]]] = {}
    for node in graph.nodes:
        if "loop" in node.meta and node.op != "get_attr":
            loop, step = node.meta["loop"]
            made.setdefault(loop, {}).setdefault(step, []).append(node)
    groups = (zip(*found[1:]) for by_step in made.values() if _same_lengths(found := [*by_step.values()]))  # noqa: B905
    return {node: group for pairs in groups for group in pairs for node in group}


def _same_lengths(found: list[list[fx.Node]]) -> bool:
    return len({len(nodes) for nodes in found[1:]}) == 1


class _DifferentError(Exception):
    """The steps of a loop are not alike."""


@dataclass(frozen=True)
class _Variable:
    """What is `first` in the first step, and in the others what the step before made at a position."""

    first: Any
    position: int


def has_loops(graph: fx.Graph) -> bool:
    """Whether a graph has steps of loops that may be alike."""
    return any("loops" in node.meta for node in graph.nodes)


def roll(graph: fx.Graph, *, few: bool = False) -> dict[str, str]:
    """Put one step in place of all, in each loop whose steps are alike.

    Args:
        graph: changed.
        few: whether the step of a loop that has no other counts as alike too; where a check has `meta["few"]`, it does.

    Returns:
        For the name of each node that is gone, that of the node in its place.
    """
    gone: dict[str, str] = {}
    for check in [node for node in graph.nodes if "loops" in node.meta]:
        fewest = 1 if few or "few" in check.meta else _FEWEST_STEPS
        rolled = [_roll(graph, loop, check, fewest) for loop in check.meta["loops"]]
        for names in rolled:
            gone |= names or {}
        if all(names is not None for names in rolled):
            graph.erase_node(check)
    return gone


def _roll(graph: fx.Graph, loop: int, check: fx.Node, fewest: int) -> dict[str, str] | None:
    found, gone = _steps_of(graph, loop)
    for skipped, least in ((0, fewest), (1, _FEWEST_STEPS)):
        if found is not None and len(found) - skipped >= least and isinstance(check.args[0], fx.Node):
            try:
                return gone | _Loop(graph, found[skipped:]).write(check.args[0])
            except _DifferentError:
                continue
    return None


def _steps_of(graph: fx.Graph, loop: int) -> tuple[list[list[fx.Node]] | None, dict[str, str]]:
    """The nodes of each step; what is the same in all steps is moved in front of the loop, once.

    Returns:
        The nodes, or None where there cannot be such steps; and for the name of each node that is gone, that of the one
        in its place.
    """
    number = {node: node.meta["loop"][1] for node in graph.nodes if node.meta.get("loop", (None,))[0] == loop}
    _move_sizes_to_users(graph, number)
    gone = _move_numbers_out(graph, number)
    return _in_steps(graph, number) if number else None, gone


def _move_sizes_to_users(graph: fx.Graph, number: dict[fx.Node, int]) -> None:
    """Read the sizes of what steps make where they are first needed: in the next step, for what is passed on to it."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in [node for node in order if reads_size(node) and node.args[0] in number and node.users]:
        min(node.users, key=order.__getitem__).prepend(node)


def _move_numbers_out(graph: fx.Graph, number: dict[fx.Node, int]) -> dict[str, str]:
    """Take out of the nodes of steps what is the same in all of them; returns what is gone, as `_steps_of` does."""
    gone: dict[str, str] = {}
    same: dict[str, fx.Node] = {}
    for node in list(number):
        if _is_the_same(node) and not any(given in number for given in node.all_input_nodes):
            del number[node]
            first = same.setdefault(f"{node.op} {node.target} {node.args} {node.kwargs}", node)
            if first is not node and node.op == "call_function":
                node.replace_all_uses_with(first)
                graph.erase_node(node)
                gone[node.name] = first.name
    return gone


def _in_steps(graph: fx.Graph, number: dict[fx.Node, int]) -> list[list[fx.Node]] | None:
    nodes = list(graph.nodes)
    places = [place for place, node in enumerate(nodes) if node in number]
    first = nodes[places[0]]
    # Then what reads a tensor in front of the loop need not read the same.
    writes = any("mutates" in node.meta for node in nodes[places[0] : places[-1]])
    step = 0
    for place in range(places[0], places[-1]):
        node = nodes[place]
        if node in number:
            step = number[node]
            continue
        if not any(given in number for given in node.all_input_nodes):
            if (writes and "loop" not in node.meta) or "random" in node.meta:
                return None
            first.prepend(node)
            continue
        around = {number[other] for other in (*node.all_input_nodes, *node.users) if other in number}
        if reads_size(node):
            around = {step}
        if len(around) != 1:
            return None
        [number[node]] = around
    found: list[list[fx.Node]] = [[] for _ in range(max(number.values()) + 1)]
    for node in graph.nodes:
        if node in number:
            found[number[node]].append(node)
    in_order = [node for step in found for node in step]
    return found if in_order == [node for node in graph.nodes if node in number] else None


def _is_the_same(node: fx.Node) -> bool:
    """Whether a node that was made in one step, of nothing that steps make, gives the same in all: a number does."""
    if node.op == "get_attr" or (node.op == "call_method" and node.target == "size"):
        return True
    read = [node, *(() if reads_layout(node) else node.all_input_nodes)]
    values = [each.meta.get("value") for each in read]
    return node.target is not loop_index and not any(value is None or trees.has_tensor(value) for value in values)


class _Loop:
    """Steps that are alike.

    Raises:
        _DifferentError: they are not.
    """

    def __init__(self, graph: fx.Graph, found: list[list[fx.Node]]) -> None:
        self._graph = graph
        self._steps = found
        self._place = {node: (k, p) for k, step in enumerate(found) for p, node in enumerate(step)}
        self._variables: dict[tuple[Any, int], _Variable] = {}
        if len({len(step) for step in found}) != 1:
            raise _DifferentError
        self._body = [self._merge_nodes(nodes) for nodes in zip(*found, strict=True)]
        self._lists: set[int] = set()
        # Whether something of the last step is used after the loop.
        self._takes_last = False
        self._users = [node for node in graph.nodes if node not in self._place]
        for node in self._users:
            for argument in (*node.args, *node.kwargs.values()):
                self._check_use(argument)

    # -- the steps --

    def _merge_nodes(self, nodes: tuple[fx.Node, ...]) -> Any:
        """The arguments of the nodes at one position, as they are in the body of the loop."""
        if len({(node.op, node.target) for node in nodes}) != 1:
            raise _DifferentError
        if nodes[0].target is loop_index:
            first: Any = nodes[0].args[1]
            if [node.args[1] for node in nodes] != [first + k for k in range(len(nodes))]:
                raise _DifferentError
            return None
        # After its numbers, a check has names of nodes, for messages.
        names = nodes[0].args[2:] if nodes[0].target in (check_as_traced, check_rank) else ()
        return self._merge([((*node.args[:2], *names) if names else node.args, dict(node.kwargs)) for node in nodes])

    def _merge(self, values: list[Any]) -> Any:
        first = values[0]
        if any(isinstance(value, fx.Node) for value in values):
            return self._merge_references(values)
        if any(type(value) is not type(first) for value in values):
            raise _DifferentError
        if isinstance(first, (tuple, list)):
            if len({len(value) for value in values}) != 1:
                raise _DifferentError
            return type(first)([self._merge(list(items)) for items in zip(*values, strict=True)])
        if isinstance(first, dict):
            if any(value.keys() != first.keys() for value in values):
                raise _DifferentError
            return {key: self._merge([value[key] for value in values]) for key in first}
        if isinstance(first, slice):
            return slice(*(self._merge([getattr(v, name) for v in values]) for name in ("start", "stop", "step")))
        if any(value != first for value in values):
            raise _DifferentError
        return first

    def _merge_references(self, values: list[Any]) -> Any:
        places = [self._place.get(value) if isinstance(value, fx.Node) else None for value in values]
        if places[0] is None:
            if all(value is values[0] for value in values):
                return values[0]
            position = places[1][1] if places[1] is not None else -1
            if places[1:] != [(k, position) for k in range(len(values) - 1)]:
                raise _DifferentError
            return self._variables.setdefault((values[0], position), _Variable(values[0], position))
        if places != [(k, places[0][1]) for k in range(len(values))]:
            raise _DifferentError
        return values[0]

    # -- what is used after the loop --

    def _check_use(self, argument: Any) -> None:
        """Refuse the use of single steps, but for the last."""
        if isinstance(argument, (tuple, list)):
            found = self._run_in(argument)
            if found is not None:
                at, position = found
                self._lists.add(position)
                argument = (*argument[:at], *argument[at + len(self._steps) :])
            for item in argument:
                self._check_use(item)
        elif isinstance(argument, dict):
            self._check_use(list(argument.values()))
        elif isinstance(argument, slice):
            self._check_use([argument.start, argument.stop, argument.step])
        elif isinstance(argument, fx.Node) and self._place.get(argument, (len(self._steps) - 1,))[0] != self._last:
            raise _DifferentError

    @property
    def _last(self) -> int:
        return len(self._steps) - 1

    def _run_in(self, items: Any) -> tuple[int, int] | None:
        """Where a list has what all steps made at a position, in their order: its first place, and the position."""
        for at, item in enumerate(items):
            k, position = self._place.get(item, (-1, -1)) if isinstance(item, fx.Node) else (-1, -1)
            if k == 0:
                run = items[at : at + len(self._steps)]
                return (at, position) if [*run] == [step[position] for step in self._steps] else None
        return None

    # -- writing --

    def write(self, count: fx.Node) -> dict[str, str]:
        """Put the loop into the graph.

        Returns:
            For the name of each node that is gone, that of the node in its place.
        """
        graph, base = self._graph, self._steps[0]
        # A number has its node where the graph first needs it, which may be after the loop.
        later = [*itertools.dropwhile(lambda node: node is not base[0], graph.nodes)]
        needed = {*computed_from(count, lambda node: node.all_input_nodes if node in later else [])}
        for node in later:
            if node in needed:
                base[0].prepend(node)
        starts = [node.args[1] for node in base if node.target is loop_index]
        start: Any = starts[0] if starts else base[0].meta["loop"][1]
        with graph.inserting_before(base[0]):
            variables = {v: self._call(keep, v.first) for v in self._variables.values()}
            lists = {position: self._call(new_list) for position in sorted(self._lists)}
            index = self._call(steps, count, start, start)
        inside = {node: index for node in base if node.target is loop_index}
        used: dict[fx.Node, None] = {}
        for node, merged in zip(base, self._body, strict=True):
            if merged is not None:
                node.args, node.kwargs = _put(merged, lambda leaf: variables.get(leaf, inside.get(leaf, leaf)))
                used |= dict.fromkeys(given for given in node.all_input_nodes if given not in self._place)
        for node in self._users:
            self._use(node, lists, {v.position: node for v, node in variables.items()})
        if self._takes_last:
            # Without a step, there may be something else.
            index.args = (count, start, start + 1)
        with graph.inserting_before(base[-1].next):
            for position, values in lists.items():
                self._call(append, values, base[position])
            for variable, node in variables.items():
                self._call(next_value, node, base[variable.position])
            self._call(end_steps, *{**used, **dict.fromkeys((*variables.values(), *lists.values()))})
        for node in [*reversed([node for step in self._steps[1:] for node in step]), *inside]:
            graph.erase_node(node)
        names = {node.name: base[p].name for node, (k, p) in self._place.items() if k}
        return names | dict.fromkeys(
            (node.name for step in self._steps for node in step if node.target is loop_index), index.name
        )

    def _call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        node = self._graph.call_function(function, args)
        node.meta["value"] = 0
        return node

    def _use(self, user: fx.Node, lists: dict[int, fx.Node], variables: dict[int, fx.Node]) -> None:
        """Let a node outside the loop take what the last step made, and lists of what each made."""

        def replaced(argument: Any) -> Any:
            if isinstance(argument, (tuple, list)):
                found = self._run_in(argument)
                if found is None:
                    return type(argument)([replaced(item) for item in argument])
                at, position = found
                with self._graph.inserting_before(user):
                    before, after = argument[:at], argument[at + len(self._steps) :]
                    parts = replaced([*before]), lists[position], replaced([*after])
                    made = self._call(joined, *(part for part in parts if part != []))
                    return made if isinstance(argument, list) else self._call(tuple, made)
            if isinstance(argument, dict):
                return {key: replaced(item) for key, item in argument.items()}
            if isinstance(argument, slice):
                return slice(replaced(argument.start), replaced(argument.stop), replaced(argument.step))
            place = self._place.get(argument) if isinstance(argument, fx.Node) else None
            if place is None:
                return argument
            self._takes_last = True
            return variables.get(place[1], self._steps[0][place[1]])

        if any(given in self._place for given in user.all_input_nodes):
            user.args, user.kwargs = tuple(map(replaced, user.args)), replaced(dict(user.kwargs))


def _put(argument: Any, put: Callable[[Any], Any]) -> Any:
    if isinstance(argument, (tuple, list)):
        return type(argument)([_put(item, put) for item in argument])
    if isinstance(argument, dict):
        return {key: _put(item, put) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(_put(argument.start, put), _put(argument.stop, put), _put(argument.step, put))
    return put(argument) if isinstance(argument, (fx.Node, _Variable)) else argument

"""What each node of a graph is needed for, where some edges of the graph may be cut."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import fx

from fxprune.running.regions import is_boundary

__all__ = ["ALWAYS", "Cut", "Edge", "Needs", "needs_of", "serving_only", "unneeded"]

# The sets of edges, by number, of which one must be there whole for a node to be needed.
Needs: TypeAlias = "frozenset[frozenset[int]]"
#: Of a node that is needed whatever is cut.
ALWAYS: Needs = frozenset([frozenset()])
# A value, and the node that reads it.
Edge: TypeAlias = "tuple[fx.Node, fx.Node]"
# A value, and the nodes that read it and can do without it.
Cut: TypeAlias = "tuple[fx.Node, tuple[fx.Node, ...]]"


def unneeded(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that nothing needs: checks, and what only checks read."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        called = node.op.startswith("call") and not is_boundary(node) and "mutates" not in node.meta
        if called and found.issuperset(node.users):
            found.add(node)
    return found


def serving_only(cut: Cut, place: Mapping[fx.Node, int], idle: set[fx.Node]) -> list[fx.Node]:
    """A value and what serves nothing else, in the order of the graph; empty if others read the value.

    Args:
        cut: the value, and the nodes that can do without it.
        place: of each node in the graph.
        idle: the nodes that nothing needs.
    """
    value, readers = cut
    inside: set[fx.Node] = set()
    # From the last node to the first: what reads a node is known before it.
    heap, seen = [(-place[value], value)], {value}
    while heap:
        _, node = heapq.heappop(heap)
        served = {user for user in node.users if user not in idle} - inside
        if served <= (set(readers) if node is value else set()) and node.op != "placeholder" and not is_boundary(node):
            inside.add(node)
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    heapq.heappush(heap, (-place[source], source))
    return sorted(inside, key=place.__getitem__)


def needs_of(
    graph: fx.Graph,
    roots: Mapping[fx.Node, fx.Node],
    edges: Mapping[Edge, int],
    most: int,
    inputs: Callable[[fx.Node], Iterable[fx.Node]] = lambda node: node.all_input_nodes,
) -> tuple[dict[fx.Node, Needs], set[int]]:
    """For each node, of which edges one set must be there whole for the node to be needed; empty if `unneeded`.

    Args:
        graph: of a traced model.
        roots: for each node the first one that shares its memory.
        edges: those that may be cut, with their numbers.
        most: the number of sets up to which they are told apart.
        inputs: those of a node that it needs; default: all.

    Returns:
        The needs, and the edges in sets that were too many.
    """
    needs: dict[fx.Node, Needs] = {}
    needed: dict[fx.Node, set[fx.Node]] = {}
    crowded: set[int] = set()
    by_name, place = {node.name: node for node in graph.nodes}, {node: k for k, node in enumerate(graph.nodes)}
    # By alias root, the nodes so far that read its memory, and through which other node they do.
    reads: dict[fx.Node, list[Edge]] = {}
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder") or is_boundary(node):
            needs[node] = ALWAYS
        else:
            found = [_through(edges.get((node, user)), needs[user]) for user in node.users if node in needed[user]]
            for name in node.meta.get("mutates", ()):
                root = roots[by_name[name]]
                if root.op in ("get_attr", "placeholder"):
                    # What is written into the model's or the caller's tensors outlasts the call.
                    found.append(ALWAYS)
                # What reads the node itself is among its users.
                older = ((x, user) for x, user in reads.get(root, ()) if place[x] < place[node])
                found += [_through(edges.get((x, user)), needs[user]) for x, user in older]
            needs[node] = _minimal(each for some in found for each in some)
            if len(needs[node]) > most:
                crowded.update(number for each in needs[node] for number in each)
                needs[node] = ALWAYS
        needed[node] = set(inputs(node))
        for source in needed[node]:
            reads.setdefault(roots[source], []).append((source, node))
    return needs, crowded


def _through(edge: int | None, needs: Needs) -> Needs:
    return needs if edge is None else frozenset(each | {edge} for each in needs)


def _minimal(sets: Iterable[frozenset[int]]) -> Needs:
    """Without sets that contain another one."""
    distinct = set(sets)
    if len(distinct) < 2:
        return frozenset(distinct)
    return frozenset(each for each in distinct if not any(other < each for other in distinct))

"""What nodes are needed for where edges may be cut."""

from __future__ import annotations

from typing import Any

import torch
from invariant import image, net
from torch import fx, nn

import fxprune
from fxprune.rules.needs import ALWAYS, needs_of, serving_only, unneeded
from fxprune.tracing.aliasing import alias_roots


def traced(forward: Any, **parts: Any) -> tuple[fx.Graph, dict[str, fx.Node], dict[fx.Node, fx.Node]]:
    module = fxprune.trace(net(forward, **parts), image(4))
    return (
        module.graph,
        {n.name: n for n in module.graph.nodes},
        alias_roots(module.graph, dict(module.named_modules())),
    )


def two_branches(self: Any, x: torch.Tensor) -> torch.Tensor:
    shared = self.a(x)
    return x + self.b(shared) + self.c(shared)


PARTS = {name: nn.Conv2d(4, 4, 1) for name in "abc"}


def test_a_node_that_two_branches_share_is_needed_for_either() -> None:
    graph, nodes, roots = traced(two_branches, **PARTS)
    edges = {(nodes["b"], nodes["add"]): 0, (nodes["c"], nodes["add_1"]): 1}
    needs, crowded = needs_of(graph, roots, edges, most=4)
    assert needs[nodes["a"]] == {frozenset([0]), frozenset([1])}
    assert needs[nodes["b"]] == {frozenset([0])}
    assert needs[nodes["x"]] == ALWAYS
    assert not crowded


def test_edges_in_more_sets_than_allowed_are_told() -> None:
    graph, nodes, roots = traced(two_branches, **PARTS)
    edges = {(nodes["b"], nodes["add"]): 0, (nodes["c"], nodes["add_1"]): 1}
    needs, crowded = needs_of(graph, roots, edges, most=1)
    assert crowded == {0, 1}
    assert needs[nodes["a"]] == ALWAYS


def test_what_serves_one_branch_only_is_its_own() -> None:
    graph, nodes, _ = traced(lambda self, x: x + self.c(torch.relu(self.b(self.a(x)))), **PARTS)
    place, idle = {node: k for k, node in enumerate(graph.nodes)}, unneeded(graph)
    served = serving_only((nodes["c"], (nodes["add"],)), place, idle)
    assert [node.name for node in served] == ["a", "b", "relu", "c"]
    assert serving_only((nodes["x"], (nodes["add"],)), place, idle) == []


def test_what_is_written_in_place_serves_those_who_read_it_later() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z = y * 2
        y.mul_(z)
        return x + y

    graph, nodes, roots = traced(forward, **PARTS)
    total = next(node for node in graph.nodes if "add" in node.name)
    value = next(node for node in total.all_input_nodes if node is not nodes["x"])
    needs, _ = needs_of(graph, roots, {(value, total): 0}, most=4)
    assert [needs[node] for node in graph.nodes if "mul" in node.name] == [{frozenset([0])}] * 2


def test_checks_and_the_sizes_that_they_read_are_needed_by_nothing() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x if self.a(x).shape[2] > 100 else self.b(x)

    graph, _, _ = traced(forward, **PARTS)
    idle = unneeded(graph)
    assert {node.name for node in graph.nodes if node.op == "output" or node.name == "b"}.isdisjoint(
        node.name for node in idle
    )
    assert any("check" in str(node.target) for node in idle)

"""Nodes of sizes, of numbers computed from them, and guards."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from fxprune.tracing.graph_builder import GraphBuilder, Origin
from fxprune.tracing.scopes import Scopes, Switch
from fxprune.tracing.size_nodes import SizeNodes


class Recorded:
    """A graph with two placeholders, which is built by hand."""

    def __init__(self) -> None:
        root = nn.Module()
        self.switch = Switch()
        self.builder = GraphBuilder(root, {}, Scopes(root))
        self.sizes = SizeNodes(self.builder, self.switch)
        self.x, self.first = self.placeholder("x", 4, 6)
        self.placeholder("y", 2)

    def placeholder(self, name: str, *shape: int) -> tuple[Tensor, fx.Node]:
        value = torch.empty(shape, device="meta")
        node = self.builder.create_node("placeholder", name, (), {}, value, Origin.INPUTS)
        return value, self.builder.bind(value, node)

    @property
    def targets(self) -> list[object]:
        return [node.target for node in self.builder.graph.nodes]


def test_a_size_gets_one_node_after_the_placeholders_and_only_when_it_is_needed() -> None:
    made = Recorded()
    size = made.sizes.size(made.first, 0, 4)
    assert size == 4
    assert made.targets == ["x", "y"]
    half = size // 2
    assert half.node().args == (size.node(), 2)  # type: ignore[attr-defined]
    assert made.sizes.size(made.first, 0, 4) is size
    assert made.targets == ["x", "y", "size", operator.floordiv]
    assert made.builder.origin[size.node()] == Origin.PARAMETERS


def test_the_number_of_entries_is_a_product_of_sizes() -> None:
    made = Recorded()
    number = made.sizes.numel(made.x)
    assert number == 24
    assert number.node().target is operator.mul
    assert made.sizes.numel(made.placeholder("z")[0]) == 1


def test_comparisons_are_guards_with_the_module_call_that_made_them_unless_recording_is_paused() -> None:
    made = Recorded()
    size = made.sizes.size(made.first, 1, 6)
    with made.builder.scopes.within(("a.b", 2)):
        assert size > 5
    with made.switch.paused():
        assert size > 4
    (guard,) = made.sizes.guards
    assert (guard.function, guard.operands, guard.traced, guard.call) == (operator.gt, (size, 5), True, ("a.b", 2))


def test_a_piece_is_taken_by_its_negative_index() -> None:
    made = Recorded()
    piece = made.sizes.from_end(made.first, made.x, -1)
    node = made.builder.node_of(piece)
    assert (node.target, node.args) == (operator.getitem, (made.first, -1))

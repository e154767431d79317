"""Values are left out of concatenations with all of their channels, and every tensor keeps some."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, masks, net, plan_for
from layer_nets import Dense, Inception
from mutate import attribute
from torch import Tensor, nn

import fxprune
from fxprune.planning.budgets import Request
from fxprune.planning.make import removable_blocks
from fxprune.rules import blocks
from fxprune.verification import TOLERANCE

MODELS = {
    "dense": (Dense, ["layers.0", "layers.1", "layers.2"]),
    "inception": (Inception, ["column", "wide2", "pool", "column#2"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_branch_is_left_out_exactly(name: str) -> None:
    kind, expected = MODELS[name]
    model = kind()
    graph = check_invariant(model, image(), plans=8)
    assert [block.name for block in graph.blocks] == expected
    for alive in masks(graph, 4):
        pruned = fxprune.rewrite(graph, plan_for(graph, alive))
        assert fxprune.verify(model, pruned, image(size=9, batch=3).double()) <= TOLERANCE
        assert fxprune.verify(model, pruned, training=True) <= TOLERANCE


def test_a_dense_layer_takes_its_channels_out_of_all_that_read_them() -> None:
    graph = fxprune.analyze(fxprune.trace(Dense().eval(), image()))
    first = graph.blocks[0]
    assert first.readers == ("cat_1", "cat_2", "cat_3")
    assert first.ends == ("layers.0.conv2.weight",)
    assert len(first.channels) == 3 + 1
    pruned = fxprune.rewrite(graph, plan_for(graph, graph.all_but([first])))
    assert pruned.get_parameter("layers.2.conv1.weight").shape[1] == 7
    assert pruned.get_parameter("head.weight").shape[1] == 10
    assert not any(name.startswith("layers.0.") for name in pruned.state_dict())


def parts(**widths: int) -> dict[str, nn.Module]:
    return {name: nn.Conv2d(4, width, 1) for name, width in widths.items()}


# What is concatenated to `stem(x)`, and why it cannot be left out.
NO_BLOCKS: dict[str, tuple[Any, dict[str, nn.Module], str]] = {
    "it is used elsewhere": (lambda self, y: (lambda z: self.head(torch.cat([y, z], 1)) + self.other(z))(self.a(y)),
                             parts(a=4, head=2, other=2), "used elsewhere"),
    "its channels are the stream's": (lambda self, y: self.head(torch.cat([y, y + self.a(y)], 1)),
                                      parts(a=4, head=2), "used elsewhere"),
    "what follows ties its channels to others": (
        lambda self, y: self.head(F.channel_shuffle(torch.cat([y, self.a(y)], 1), 2)), parts(a=4, head=2),
        "would have no channels"),
    "it is cut out again": (lambda self, y: self.other(torch.cat([y, self.a(y)], 1)[:, 4:]),
                            parts(a=4, other=2), "would have no channels"),
    "its channels are frozen": (lambda self, y: self.head(torch.cat([y, self.a(y)], 1).softmax(1)),
                                parts(a=4, head=2), "its channels cannot go: "),
    "it has no FLOPs": (lambda self, y: self.head(torch.cat([y, self.table * y[:, :1]], 1)), parts(head=2), "no FLOPs"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_what_cannot_be_left_out_says_why(name: str) -> None:
    forward, layers, reason = NO_BLOCKS[name]
    layers = {k: nn.Conv2d(8, 2, 1) if k == "head" else layer for k, layer in layers.items()}
    model = net(lambda self, x: forward(self, self.stem(x)), stem=nn.Conv2d(3, 4, 1),
                table=nn.Parameter(torch.zeros(4, 1, 1)), **layers)  # fmt: skip
    graph = check_invariant(model, image(), plans=3)
    assert not [block for block in graph.blocks if not block.stays]
    assert any(reason in each.reason for each in graph.no_blocks), graph.no_blocks


def test_something_stays_where_several_could_go() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        z = torch.cat([self.a(y), self.b(y), self.c(y)], 1)
        # Nothing is left of this cut if the first two go.
        return self.head(z), self.other(z[:, :7])

    layers = parts(a=4, b=3, c=2, other=2) | {"head": nn.Conv2d(9, 2, 1), "other": nn.Conv2d(7, 2, 1)}
    graph = check_invariant(net(forward, stem=nn.Conv2d(3, 4, 1), **layers), image(), plans=6)
    # That of the fewest FLOPs stays: of a, b and c it is c, and of a and b it is b.
    assert [block.name for block in graph.blocks] == ["a"]
    assert sum("others are left out instead" in each.reason for each in graph.no_blocks) == 2


def test_what_is_ignored_keeps_the_channels_that_it_reads() -> None:
    graph = fxprune.analyze(fxprune.trace(Dense().eval(), image()))
    left = removable_blocks(graph, Request(ignore=("layers.2",), depth=True))
    # The third layer reads the first two.
    assert not left
    assert len(removable_blocks(graph, Request(ignore=("layers.0",), depth=True))) == 2


def _only_its_own(block: Any) -> Any:
    return replace(block, channels=block.channels[-1:])


BROKEN: dict[str, tuple[str, Any, type[nn.Module]]] = {
    "everything may go": ("without_channels", lambda *given: {}, Inception),
    "channels stay": ("_block", lambda *given, make=blocks._block: _only_its_own(make(*given)), Dense),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, wrong, kind = BROKEN[name]
    check_invariant(kind(), image(), plans=3)
    attribute(blocks, what, wrong)(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, fxprune.FxpruneError)):
        check_invariant(kind(), image(), plans=3)

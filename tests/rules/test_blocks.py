"""Blocks: which parts can be left out whole, and that the result is then the zero-masked original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from mutate import attribute
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fxprune
from fxprune.channels.polynomial import Term
from fxprune.errors import FxpruneError
from fxprune.rules import blocks
from fxprune.rules.op import Op


def conv(kernel: int = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2, **more)


def branches(*branch: Any) -> Any:
    """A forward that adds branches to the stream one after the other, and ends in a layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for each in branch:
            x = x + each(self, x)
        return self.head(x)

    return forward


STREAM = {"stem": nn.Conv2d(3, 4, 1), "head": nn.Conv2d(4, 2, 1)}

NETS: dict[str, tuple[Any, dict[str, Any], list[tuple[str, tuple[str, ...]]]]] = {
    "convolution": (branches(lambda self, x: self.b(self.a(x).relu())), {"a": conv(3), "b": conv()},
                    [("b", ("b.weight", "b.bias"))]),
    "batch norm": (branches(lambda self, x: self.n(self.a(x))), {"a": conv(), "n": nn.BatchNorm2d(4)},
                   [("a", ("n.weight", "n.bias"))]),
    "batch norm without weights": (branches(lambda self, x: self.n(self.a(x))),
                                   {"a": conv(bias=False), "n": nn.BatchNorm2d(4, affine=False)},
                                   [("a", ("n.running_mean", "n.running_var", "a.weight"))]),
    "scale of a layer": (branches(lambda self, x: self.a(x) * self.g.view(-1, 1, 1)),
                         {"a": conv(), "g": parameter(4)}, [("a", ("a.weight", "a.bias"))]),
    "activation that keeps zeros": (branches(lambda self, x: torch.tanh(self.a(x))), {"a": conv()},
                                    [("a", ("a.weight", "a.bias"))]),
    "one gain for all": (branches(lambda self, x: torch.sigmoid(self.a(x)).mul_(self.gain) * 0.2),
                         {"a": conv(), "gain": parameter()}, [("a", ("gain",))]),
    "two in a row": (branches(lambda self, x: self.a(x), lambda self, x: self.b(x)), {"a": conv(), "b": conv()},
                     [("a", ("a.weight", "a.bias")), ("b", ("b.weight", "b.bias"))]),
    "one inside another": (branches(lambda self, x: self.c(self.a(x) + self.b(self.a(x)))),
                           {"a": conv(), "b": conv(), "c": conv()},
                           [("b", ("b.weight", "b.bias")), ("c", ("c.weight", "c.bias"))]),
    "in place": (branches(lambda self, x: self.a(x).relu_().mul_(2)), {"a": conv()}, [("a", ("a.weight", "a.bias"))]),
    "two that share a layer": (lambda self, x: (lambda y, z: self.head(y + self.b(z) + self.c(z)))(
        self.stem(x), self.a(self.stem(x))), {"a": conv(), "b": conv(), "c": conv()},
        [("b", ("b.weight", "b.bias")), ("c", ("c.weight", "c.bias"))]),
    "lengths of weights": (branches(lambda self, x: self.a(x)), {"a": weight_norm(conv())},
                           [("a", ("a.bias", "a.parametrizations.weight.original0"))]),
    "lengths as many as directions": (branches(lambda self, x: self.a(x)), {"a": weight_norm(conv(groups=4))},
                                      [("a", ("a.bias", "a.parametrizations.weight.original0"))]),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_a_block_is_left_out_exactly(name: str) -> None:
    forward, parts, expected = NETS[name]
    graph = check_invariant(net(forward, **STREAM, **parts), image(), plans=4)
    assert [(block.name, block.ends) for block in graph.blocks] == expected
    for block in graph.blocks:
        terms = [term for node in block.nodes for term in graph.costs.get(node, ())]
        assert block.flops == sum(t.coefficient * int(torch.tensor([len(f) for f in t.factors]).prod()) for t in terms)
        assert all(any(block.channel in factor for factor in t.factors) for t in terms)


NO_BLOCKS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "its end is not zero": (branches(lambda self, x: torch.sigmoid(self.a(x))), {"a": conv()}, "no parameters"),
    "it is used elsewhere": (lambda self, x: (lambda y, b: self.head(y + b) + self.other(b))(
        self.stem(x), self.a(self.stem(x))), {"a": conv(), "other": nn.Conv2d(4, 2, 1)}, "used elsewhere"),
    "its end is used elsewhere": (lambda self, x: self.head(self.stem(x) + self.a(self.stem(x))) + self.other(
        self.a(x.mean(1, keepdim=True).expand(-1, 4, -1, -1))), {"a": conv(), "other": nn.Conv2d(4, 2, 1)},
        "no parameters"),
    "both are broadcast": (lambda self, x: self.head(self.stem(x).mean(2, keepdim=True) + self.a(x)),
                           {"a": nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d((None, 1)))}, "shape"),
    "it has no FLOPs": (branches(lambda self, x: x * self.g.view(-1, 1, 1)), {"g": parameter(4)}, "no FLOPs"),
    "the input is not cut": (lambda self, x: self.head(x + self.b(self.a(x).relu())),
                             {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 3, 1), "head": nn.Conv2d(3, 2, 1)}, "carry"),
    "the stream is its end": (branches(lambda self, x: torch.tanh(x)), {}, "no FLOPs"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_what_is_no_block_says_why(name: str) -> None:
    forward, parts, reason = NO_BLOCKS[name]
    graph = check_invariant(net(forward, **(STREAM | parts)), image())
    assert not [block for block in graph.blocks if block.name != "head"]
    assert any(reason in each.reason for each in graph.no_blocks)


def test_a_branch_with_normalised_weights_that_is_concatenated_is_compared_with_its_limit() -> None:
    def joined(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(torch.cat([y, self.b(y)], 1))

    model = net(joined, a=nn.Conv2d(3, 4, 1), b=weight_norm(nn.Conv2d(4, 6, 1)), head=nn.Conv2d(10, 2, 1))
    graph = check_invariant(model, image(), plans=4)
    assert [block.name for block in graph.blocks] == ["b"]


def test_attention_and_mlp_are_blocks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = net(lambda self, x: self.head(self.layer(self.stem(x))), layer=layer, stem=nn.Linear(4, 8),
                head=nn.Linear(8, 2))  # fmt: skip
    graph = check_invariant(model, tokens(), plans=4)
    assert [block.name for block in graph.blocks] == ["layer.self_attn", "layer"]


def sized(self: Any, x: Tensor) -> Tensor:
    y = self.stem(x)
    z = self.a(y)
    return self.head(F.interpolate(y + self.b(z), scale_factor=float(max(z.shape[-1] // 3, 1))))


BROKEN: dict[str, tuple[Any, str, Any, Any]] = {
    "any value is zero": (blocks._Owned, "_zeroed", lambda self, node, inside: blocks._Zeroed(None, ("a.bias",)),
                          branches(lambda self, x: torch.sigmoid(self.a(x)))),
    "costs stay": (blocks, "with_blocks", lambda terms, sets: [Term(t.coefficient, t.factors) for t in terms],
                   branches(lambda self, x: self.a(x))),
    "sizes are counted": (blocks, "counted_inputs", lambda node: node.all_input_nodes, sized),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_for_blocks_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, what, wrong, forward = BROKEN[name]
    model = net(forward, a=conv(), b=conv(), **STREAM)
    check_invariant(model, image(), plans=3)
    attribute(owner, what, wrong)(monkeypatch)
    with pytest.raises((AssertionError, FxpruneError)):
        check_invariant(model, image(), plans=3)


def test_analysis_is_not_disturbed_by_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[str] = []
    original = Op.freeze
    monkeypatch.setattr(Op, "freeze", lambda self, what, reason: (frozen.append(reason), original(self, what, reason)))
    forward, parts, _ = NETS["batch norm"]
    graph = check_invariant(net(forward, **STREAM, **parts), image())
    assert {each.reason for each in graph.frozen} == {"model input (stem)", "model output"}


def masked(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(x + self.b(self.a(x).relu() * mask))


def test_what_alone_reads_an_input_stays_since_the_input_may_have_more_samples() -> None:
    inputs = (image().double(), torch.ones(1, 4, 1, 1, dtype=torch.float64))
    graph = fxprune.analyze(fxprune.trace(net(masked, a=conv(3), b=conv(), **STREAM).double(), inputs))
    assert not graph.blocks
    assert "it alone reads the input 'mask', which may have more samples" in [each.reason for each in graph.no_blocks]

    def both(self: Any, x: Tensor, mask: Tensor) -> Tensor:
        return masked(self, x * mask[:, :1], mask)

    graph = fxprune.analyze(fxprune.trace(net(both, a=conv(3), b=conv(), **STREAM).double(), inputs))
    assert [block.name for block in graph.blocks] == ["b"]

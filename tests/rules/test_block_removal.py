"""Blocks are left out of graph, module and state dict; what is left of a sum takes its place without a trace."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from invariant import check_invariant, image, net, plan_for
from torch import Tensor, fx, nn

import fxprune
from fxprune.verification import TOLERANCE


def stream() -> dict[str, nn.Module]:
    return {"stem": nn.Conv2d(3, 4, 1), "head": nn.Conv2d(4, 2, 1)}


def without_blocks(model: nn.Module, inputs: Any = None) -> fx.GraphModule:
    """The model without any of its blocks, verified."""
    inputs = image() if inputs is None else inputs
    graph = fxprune.analyze(fxprune.trace(model, inputs))
    assert graph.blocks
    pruned = fxprune.rewrite(graph, plan_for(graph, graph.all_but(graph.blocks)))
    assert fxprune.verify(model, pruned) <= TOLERANCE
    return pruned


def branch(**more: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), **more)


def test_nodes_modules_and_keys_go_and_all_others_stay() -> None:
    model = net(lambda self, x: (lambda y: self.head(y + self.body(y)))(self.stem(x)), body=branch(), **stream()).eval()
    pruned = without_blocks(model)
    assert list(pruned.state_dict()) == ["stem.weight", "stem.bias", "head.weight", "head.bias"]
    assert [name for name, _ in pruned.named_modules() if name] == ["stem", "head"]
    assert [node.op for node in pruned.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    assert list(fxprune.plan_of(pruned).removed) == ["body"]


def test_a_layer_with_parts_that_hold_nothing_goes_as_a_whole() -> None:
    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.drop, self.act = nn.Identity(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))

    body = nn.Sequential(nn.Conv2d(4, 6, 1), NormAct(6), nn.Conv2d(6, 4, 1))
    model = net(lambda self, x: (lambda y: self.head(y + self.body(y)))(self.stem(x)), body=body, **stream()).eval()
    pruned = without_blocks(model)
    assert not any(name.startswith("body") for name, _ in pruned.named_modules())
    fxprune.compensate(fxprune.analyze(fxprune.trace(model, image())), pruned, torch.randn(4, *image().shape[1:]))


def test_what_is_written_into_the_sum_is_not_written_into_the_stream() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        return self.head((y + self.body(y)).relu_()), y * 2

    model = net(forward, body=branch(), **stream()).eval()
    pruned = without_blocks(model)
    assert sum("clone" in str(node.target) for node in pruned.graph.nodes) == 1
    check_invariant(model, image(), plans=4)


def test_no_copy_is_made_where_none_is_needed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head((y + self.body(y)).relu_())

    pruned = without_blocks(net(forward, body=branch(), **stream()).eval())
    assert not any("clone" in str(node.target) for node in pruned.graph.nodes)


def test_the_order_in_memory_is_that_of_the_sum() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x).transpose(2, 3)
        return self.head((self.body(y.contiguous()) + y).view(x.shape[0], 4, -1, 1))

    model = net(forward, body=branch(), **stream()).eval()
    check_invariant(model, image(), plans=4)


def test_checks_of_sizes_go_with_what_they_read() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.body(y)
        return self.head(y + (z * 2 if z.shape[-1] > 100 else z))

    pruned = without_blocks(net(forward, body=branch(), **stream()).eval())
    assert pruned(image(size=128)).shape == (2, 2, 128, 128)


def test_sums_in_a_row_and_blocks_in_blocks_go_together() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x)
        inner = self.a(y)
        y = y + self.c(inner + self.b(inner))
        return self.head(y + self.d(y))

    parts = {name: nn.Conv2d(4, 4, 1) for name in "abcd"}
    model = net(forward, **stream(), **parts).eval()
    assert list(without_blocks(model).state_dict()) == ["stem.weight", "stem.bias", "head.weight", "head.bias"]
    check_invariant(model, image(), plans=6)


def test_a_tied_weight_stays_where_it_is_used_elsewhere() -> None:
    model = net(lambda self, x: (lambda y: self.head(self.a(y + self.b(self.a(y)))))(self.stem(x)),
                a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), **stream()).eval()  # fmt: skip
    pruned = without_blocks(model)
    assert "a.weight" in pruned.state_dict()
    assert "b.weight" not in pruned.state_dict()


def joins(self: Any, x: Tensor) -> Tensor:
    y = self.stem(x)
    return self.head(torch.cat([y, self.a(y)], 1))


def test_a_concatenation_of_one_tensor_is_that_tensor() -> None:
    model = net(joins, a=nn.Conv2d(4, 5, 1), stem=nn.Conv2d(3, 4, 1), head=nn.Conv2d(9, 2, 1)).eval()
    pruned = without_blocks(model)
    assert [node.name for node in pruned.graph.nodes] == ["x", "stem", "head", "output"]
    assert pruned.get_parameter("head.weight").shape == (2, 4, 1, 1)


def test_channels_are_counted_as_if_what_is_left_out_were_there() -> None:
    """A cut in front of which something is left out takes what it took before."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = torch.cat([self.a(y), y], 1)
        return self.head(z[:, 6:] + self.other(z).sum(1, keepdim=True))

    model = net(forward, a=nn.Conv2d(4, 5, 1), stem=nn.Conv2d(3, 4, 1), other=nn.Conv2d(9, 2, 1),
                head=nn.Conv2d(3, 2, 1)).eval()  # fmt: skip
    without_blocks(model)
    assert check_invariant(model, image(), plans=4).blocks


def test_what_is_written_into_a_concatenation_is_not_written_into_what_is_left_of_it() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        return self.head(torch.cat([y, self.a(y)], 1).relu_()), y * 2

    model = net(forward, a=nn.Conv2d(4, 5, 1), stem=nn.Conv2d(3, 4, 1), head=nn.Conv2d(9, 2, 1)).eval()
    pruned = without_blocks(model)
    assert any("cat" in str(node.target) for node in pruned.graph.nodes)
    check_invariant(model, image(), plans=4)


@pytest.mark.parametrize("branches", ["a", "ab"])
def test_the_order_in_memory_is_that_of_the_concatenation(branches: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x).to(memory_format=torch.channels_last)
        parts = [getattr(self, name)(y) for name in branches]
        joined = torch.cat([y, *parts, self.c(y).contiguous()], 1)
        return self.head(joined.view(x.shape[0], self.head.in_channels, -1, 1))

    parts = {name: nn.Conv2d(4, 5, 1) for name in (*branches, "c")}
    width = 9 + 5 * len(branches)
    model = net(forward, **parts, stem=nn.Conv2d(3, 4, 1), head=nn.Conv2d(width, 2, 1)).eval()
    without_blocks(model)
    graph = check_invariant(model, image(), plans=6)
    assert [block.name for block in graph.blocks] == [*branches, "c"]


@pytest.mark.parametrize("training", [False, True])
def test_the_result_trains_and_compiles_and_copies(training: bool) -> None:
    model = net(lambda self, x: (lambda y: self.head(y + self.body(y)))(self.stem(x)), body=branch(), **stream())
    pruned = without_blocks(model.eval()).train(training)
    outputs = pruned(image())
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    again = pickle.loads(pickle.dumps(pruned))
    torch.testing.assert_close(again(image()), outputs)

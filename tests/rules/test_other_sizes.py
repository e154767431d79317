"""The sizes of tensors for inputs of other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import image, net
from torch import Tensor, nn

import fxprune
from fxprune.rules.other_sizes import OtherSizes


def shapes_of(model: nn.Module, inputs: Any, node: str, mixing: bool = False) -> set[tuple[int, ...]]:
    traced = fxprune.trace(model, inputs)
    sizes = OtherSizes(traced.graph, dict(traced.named_modules()))
    chosen = next(x for x in traced.graph.nodes if x.name == node)
    return {shape for (shape,) in sizes.shapes(chosen, mixing=mixing)}


def test_an_image_is_tried_at_other_batches_and_sides() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
    assert shapes_of(model, image(3, 9, 2), "_1") == {(10, 8, 8, 13), (4, 8, 13, 8)}


def test_an_image_that_has_to_be_square_is_tried_at_other_sizes() -> None:
    model = net(lambda self, x: self.a(x) @ x[:, :1], a=nn.Conv2d(3, 8, 1))
    assert shapes_of(model, image(3, 4, 1), "a") == {(5, 8, 8, 8), (2, 8, 12, 12)}


def test_of_a_model_that_takes_one_resolution_the_batch_is_varied() -> None:
    model = net(lambda self, x: self.b(self.a(x).flatten(1)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2))
    assert shapes_of(model, image(), "a") == {(4, 8, 6, 6)}


def test_a_node_that_takes_one_size_alone_ends_the_tries() -> None:
    model = net(
        lambda self, x: self.a(x) + self.table, a=nn.Conv2d(3, 8, 1), table=nn.Parameter(torch.zeros(8, 40, 40))
    )
    traced = fxprune.trace(model, image(3, 40))
    sizes = OtherSizes(traced.graph, dict(traced.named_modules()))
    assert {shape for (shape,) in sizes.shapes(next(n for n in traced.graph.nodes if n.name == "a"))} == {
        (4, 8, 40, 40)
    }
    assert len(sizes._tried) < 20


def test_lengths_of_several_inputs_vary_together() -> None:
    model = net(lambda self, ids, mask: self.a(ids) * mask.unsqueeze(-1), a=nn.Embedding(9, 4))
    assert shapes_of(model, (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5)), "a") == {(2, 10, 4), (4, 5, 4)}


def test_channels_do_not_vary_and_lengths_do() -> None:
    assert shapes_of(nn.Sequential(nn.Conv1d(6, 8, 3)), torch.zeros(2, 6, 20), "_0") == {(4, 8, 18), (2, 8, 38)}


def test_sizes_at_which_samples_are_mixed_are_told_apart() -> None:
    model = net(lambda self, x: self.b(self.a(x).view(-1, 288)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2))
    assert shapes_of(model, image(), "a") == {(4, 8, 6, 6)}
    assert shapes_of(model, image(), "a", mixing=True) == {(2, 8, 12, 6), (2, 8, 6, 12)}


def test_what_does_not_run_without_values_is_as_in_the_example() -> None:
    def forward(self: Any, x: Tensor, index: Tensor) -> Tensor:
        return self.b(self.a(x)[:, : index.max().item()])

    model = net(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    assert (4, 4, 4) in shapes_of(model, (torch.zeros(2, 7, 3), torch.tensor([4, 3])), "b")


@pytest.mark.parametrize("name", ["unsqueeze_", "squeeze_"])
def test_the_example_is_not_changed_by_ops_that_change_shapes(name: str) -> None:
    model = net(lambda self, x: getattr(self.a(x), name)(1), a=nn.Conv2d(3, 8, 1))
    traced = fxprune.trace(model, image())
    before = [(node.name, tuple(node.meta["value"].shape)) for node in traced.graph.nodes if node.op != "output"]
    OtherSizes(traced.graph, dict(traced.named_modules())).shapes(next(iter(traced.graph.nodes)))
    assert before == [(n.name, tuple(n.meta["value"].shape)) for n in traced.graph.nodes if n.op != "output"]

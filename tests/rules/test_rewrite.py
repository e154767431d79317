"""What a rule sees of a node of the new graph, and what it puts in front of it."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.channels import Labels, Size
from fxprune.rules.rewrite import Rewrite


@pytest.fixture
def op() -> Rewrite:
    """A linear layer of four channels, of which the first and the last stay, called on sequences of three."""
    root = nn.Module()
    root.layer = nn.Linear(4, 2)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["value"] = torch.empty(2, 3, 4, device="meta")
    size = graph.call_method("size", (x,))
    size.meta["value"] = torch.Size((2, 3, 4))
    node = graph.call_module("layer", (x,))
    node.meta["value"] = torch.empty(2, 3, 2, device="meta")
    graph.output(node)
    fx.GraphModule(root, graph)
    channels = Labels((2, 3, np.arange(4)), (False,) * 3)
    labels = {"x": channels, "layer": Labels.plain((2, 3, 2)), "size": Size(None, True)}
    return Rewrite(node, np.array([True, False, False, True]), root.layer, root.layer, labels)


def test_it_says_what_stays(op: Rewrite) -> None:
    x = op.labels(op.node.args[0])
    assert op.out.shape == tuple(op.value.shape) == (2, 3, 2)
    assert (op.size(x.dims[2]), op.size(x.dims[1])) == (2, 3)
    assert op.kept(np.arange(4)).tolist() == [True, False, False, True]
    assert op.changed(x.dims[2])
    assert not op.changed(x.dims[1])
    assert not op.changed(np.array([0, 3]))


def test_arguments_are_numbers_or_nodes_that_give_numbers(op: Rewrite) -> None:
    size = next(iter(op.node.graph.find_nodes(op="call_method", target="size")))
    assert op.number(3) == 3
    assert op.number(size) == (2, 3, 4)
    assert op.is_static(size)
    with pytest.raises(fxprune.FxpruneError, match="3 is not a node that gives one tensor"):
        op.labels(3)


def test_new_nodes_come_before_the_node(op: Rewrite) -> None:
    x = op.node.args[0]
    added = op.insert(torch.mul, (x, 2), {})
    weight = op.insert_parameter("weight")
    buffer = op.insert_buffer("index", torch.tensor([0, 1]))
    other = op.insert_buffer("index", torch.tensor([1, 0]))
    assert op.insert_parameter("scale") is None
    names = [node.name for node in op.node.graph.nodes]
    assert names.index("layer") > max(names.index(node.name) for node in (added, weight, buffer, other) if node)
    root = op.node.graph.owning_module
    assert root is not None
    assert (str(buffer.target), str(other.target)) == ("_index0", "_index1")
    assert "_index0" not in root.state_dict()


def test_the_entries_of_a_size_are_taken_one_by_one(op: Rewrite) -> None:
    size = next(iter(op.node.graph.find_nodes(op="call_method", target="size")))
    entries = op.entries(size)
    assert [(node.target, node.args[1], node.meta["value"]) for node in entries] == [
        (operator.getitem, 0, 2), (operator.getitem, 1, 3), (operator.getitem, 2, 4),
    ]  # fmt: skip

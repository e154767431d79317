"""What a rule sees of a node, and what it does to channel ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from invariant import image, masks, net, plan_for, randomise, tokens
from layer_nets import images
from torch import Tensor, fx, nn

import fxprune
from fxprune.channels import Labels, Size
from fxprune.rules.op import Op, UnsupportedCall, axis, elements, is_static, map_values
from fxprune.rules.state import Splits, State
from fxprune.verification import TOLERANCE


def op_of(model: nn.Module, name: str, inputs: Tensor | None = None) -> Op:
    """The view of a node, before anything is known of the others."""
    traced = fxprune.trace(model.eval(), tokens() if inputs is None else inputs)
    modules = dict(traced.named_modules())
    node = next(node for node in traced.graph.nodes if node.name == name)
    return Op(node, modules.get(str(node.target)), State.of(traced, modules, Splits()))


@pytest.fixture
def op() -> Op:
    """A linear layer."""
    return op_of(nn.Sequential(nn.Linear(4, 6)), "_0")


def reasons(op: Op) -> list[str]:
    return list(op.ids.resolve().frozen.values())


def test_a_node_has_a_name_a_value_and_a_shape(op: Op) -> None:
    assert (op.name, op.shape) == ("Linear", (2, 5, 6))
    assert op.value.is_meta


def test_weights_have_ids_of_their_own_and_one_that_is_missing_is_not_supported(op: Op) -> None:
    assert op.weight("weight").shape == (6, 4)
    assert op.weight("weight").dims[0] is op.weight("weight").dims[0]
    assert op.find_weight("scale") is None
    with pytest.raises(UnsupportedCall, match="Linear has no parameter or buffer 'scale'"):
        op.weight("scale")


def test_dimensions_that_are_united_have_the_same_channels(op: Op) -> None:
    a, b = op.ids.fresh(3), op.ids.fresh(3)
    assert op.unite(a, b) is a
    channel = op.ids.resolve().channel_of
    assert channel[a].tolist() == channel[b].tolist()


def test_a_dimension_that_meets_one_without_channels_is_frozen(op: Op) -> None:
    a = op.ids.fresh(3)
    assert op.unite(3, a) is a
    assert op.unite(4, 4) == 4
    assert reasons(op) == ["model input (_0)"] * 3


def test_dimensions_of_different_sizes_do_not_unite(op: Op) -> None:
    with pytest.raises(UnsupportedCall, match="dimensions of sizes 3 and 4 meet"):
        op.unite(op.ids.fresh(3), 4)


def test_an_axis_is_united_across_all_others(op: Op) -> None:
    ids = op.ids.fresh(6).reshape(2, 3)
    assert op.unite_axis(ids, 1).tolist() == [0, 1, 2]
    channel = op.ids.resolve().channel_of
    assert channel.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_part_of_one_index_is_no_channel_dimension(op: Op) -> None:
    a = op.ids.fresh(4)
    assert op.part(a, slice(1, 3)).tolist() == [1, 2]  # type: ignore[union-attr]
    assert op.part(a, np.array([3])) == 1
    assert op.part(7, slice(1, 3)) == 2
    assert op.ids.resolve().frozen == {3: "selected by number (_0)"}


def test_labels_dimensions_and_containers_of_labels_are_frozen(op: Op) -> None:
    a, b, c = op.ids.fresh(1), op.ids.fresh(1), op.ids.fresh(1)
    op.freeze(a, "one")
    op.freeze(Labels((2, b), (False, False)), "two")
    op.freeze([{"x": (Labels((c,), (True,)), 5)}], "three")
    op.freeze(2, "nothing")
    assert reasons(op) == ["one (_0)", "two (_0)", "three (_0)"]


def test_a_gate_acts_on_the_argument_whose_labels_are_summed_over(op: Op) -> None:
    x = Labels((2, 5, op.ids.fresh(4)), (False, False, True))
    (argument,) = op.node.all_input_nodes
    op.state.labels[argument.name] = x
    op.sums_over(x, -1)
    op.sums_over(x, -1)
    op.sums_over(x, 0)
    op.sums_over(Labels.plain((3,)), 0)
    assert op.state.contractions == {"_0": ((argument.name, 2),)}


def test_a_size_of_channels_is_static_and_a_size_of_the_batch_is_not() -> None:
    node = fx.Graph().placeholder("n")
    assert is_static(3, {})
    assert is_static(node, {"n": Size(np.arange(4), True)})
    assert not is_static(node, {"n": Size(None, False)})
    assert not is_static(node, {})


def test_a_dimension_is_counted_from_the_front_and_has_to_be_there() -> None:
    x = Labels.plain((2, 3))
    assert [axis(x, d) for d in (0, 1, -1, -2)] == [0, 1, 1, 0]
    with pytest.raises(UnsupportedCall, match="dimension 0 of a tensor of 0 dimensions"):
        axis(Labels.plain(()), 0)


def test_values_become_labels_without_channels() -> None:
    tree = map_values({"a": (torch.zeros(2, 3), 4)})
    assert isinstance(tree, dict)
    labels, number = tree["a"]
    assert labels.shape == (2, 3)
    assert not number.static
    assert elements(labels, 5)(np.ones(0, dtype=bool)) == 30


def test_a_call_of_the_wrong_kind_is_refused_where_a_single_tensor_is_needed() -> None:
    graph = fxprune.analyze(fxprune.trace(net(lambda self, x: self.a(x).chunk(2, -1)[0], a=nn.Linear(4, 6)), tokens()))
    with pytest.raises(fxprune.FxpruneError, match="does not give one tensor"):
        graph.labels_of("chunk")


BY_SIZE: dict[str, Any] = {
    "select": lambda self, x: x * x.select(1, x.shape[2]).mean((1, 2), keepdim=True).unsqueeze(1),
    "index": lambda self, x: x * x[:, x.shape[2]].mean((1, 2), keepdim=True).unsqueeze(1),
    "narrow": lambda self, x: x * x.narrow(1, 0, x.shape[2]).mean((1, 2, 3), keepdim=True),
    "padding": lambda self, x: F.pad(x, (0, 0, 0, 0, x.shape[2] - 4, 0))[:, :16],
    "norm groups": lambda self, x: F.group_norm(x, x.shape[2]),
    "shuffled groups": lambda self, x: F.channel_shuffle(x, x.shape[2] // 2),
}


@pytest.mark.parametrize("name", BY_SIZE)
def test_channels_that_a_size_selects_pads_or_groups_stay(name: str) -> None:
    model = randomise(images(BY_SIZE[name], 16, 16))
    graph = fxprune.analyze(fxprune.trace(model, image(3, 4).double()))
    assert not any("a.weight" in str(group.dimensions) for group in graph.groups)
    pruned = fxprune.rewrite(graph, plan_for(graph, next(masks(graph, 1))))
    assert fxprune.verify(model, pruned, image(3, 8).double()) <= TOLERANCE


def _written(self: nn.Module, x: Tensor) -> Tensor:
    flat = self.body(x).tanh().transpose(1, 2).flatten(1)
    flat[:, :4] = 0
    return flat[:, :8]


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda flat: flat[:, :8],
    "slice from the back": lambda flat: flat[:, -8:],
    "slice from the middle": lambda flat: flat[:, 2:10],
    "one place": lambda flat: flat[:, 5:6] + flat[:, 5:].mean(1, keepdim=True) + flat[:, 5].unsqueeze(1).expand(-1, 8),
    "places": lambda flat: flat[:, [0, 1, 2, 3, 4, 5, 6, 7]],
    "narrowed": lambda flat: flat.narrow(1, 0, 8),
    "index_select": lambda flat: flat.index_select(1, torch.arange(8)),
    "split": lambda flat: flat.split(8, 1)[0],
    "select": lambda flat: torch.stack([flat.select(1, k) for k in range(8)], 1),
}


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_where_positions_lie_between_channels_a_cut_takes_others_at_another_length(
    cut: Callable[[Tensor], Tensor], length: int
) -> None:
    body = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    model = net(lambda self, x: self.out(cut(self.body(x).tanh().transpose(1, 2).flatten(1))), body=body,
                out=nn.Linear(8, 3)).eval()  # fmt: skip
    check_lengths(model, length)


@pytest.mark.parametrize("length", [2, 4])
def test_so_does_a_write(length: int) -> None:
    body = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    check_lengths(net(lambda self, x: self.out(_written(self, x)), body=body, out=nn.Linear(8, 3)).eval(), length)


def check_lengths(model: nn.Module, length: int) -> None:
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(2, length, 4)))
    pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=0.75))
    for other in (2, 3, 4, 5, 9):
        try:
            error = fxprune.verify(model, pruned, torch.randn(3, other, 4))
        except fxprune.FxpruneError:
            # Its own code may follow the length.
            continue
        assert error <= TOLERANCE
    assert fxprune.verify(model, pruned, torch.randn(3, length, 4)) <= TOLERANCE

"""The analysis: which channels belong together, which are frozen and why; it is pure and deterministic."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from invariant import check_invariant, image, net, parameter, prunable, tokens
from layer_nets import images, vectors
from torch import Tensor, nn

import fxprune
from fxprune import analysis
from fxprune.channels import Labels
from fxprune.rules import UnsupportedCall
from fxprune.rules.elementwise import elementwise
from fxprune.rules.op import Op
from fxprune.rules.registry import _RULES


def graph_of(model: nn.Module, inputs: object) -> fxprune.ChannelGraph:
    return fxprune.analyze(fxprune.trace(model.eval(), inputs))


def dimensions(group: fxprune.Group | fxprune.Frozen) -> set[str]:
    return {str(dimension) for dimension in group.dimensions}


def test_a_residual_sum_couples_what_is_added() -> None:
    model = net(
        lambda self, x: self.c((y := self.a(x)) + self.b(y)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    (group,) = graph_of(model, image()).groups
    assert dimensions(group) == {"a.weight[0]", "a.bias[0]", "b.weight[0]", "b.weight[1]", "b.bias[0]", "c.weight[1]"}
    assert len(group) == 4


def test_a_concatenation_makes_groups_of_its_own_in_the_layer_that_follows() -> None:
    model = net(
        lambda self, x: self.c(torch.cat([self.a(x), self.b(x)], 1)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 5, 1), c=nn.Conv2d(9, 2, 1),
    )  # fmt: skip
    groups = graph_of(model, image()).groups
    assert sorted(map(len, groups)) == [4, 5]
    assert all("c.weight[1]" in dimensions(group) for group in groups)


def test_flattening_repeats_each_channel_once_per_position() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2))
    (group,) = graph_of(model, image()).groups
    assert group.repeats == 36


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 2)), tokens(), "model output"),
        (nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1), nn.Linear(5, 2)), tokens(), "softmax (_1)"),
        (nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4)), tokens(), "model input (_0)"),
        (net(lambda self, x: self.a(x).cumsum(-1), a=nn.Linear(4, 5)), tokens(), "cumsum mixes channels (cumsum)"),
    ],
)  # fmt: skip
def test_every_frozen_channel_has_its_reason(model: nn.Module, inputs: torch.Tensor, reason: str) -> None:
    graph = graph_of(model, inputs)
    assert reason in {frozen.reason for frozen in graph.frozen}
    assert all(frozen.reason for frozen in graph.frozen)
    assert reason in str(graph)


def test_a_call_that_its_rule_does_not_support_freezes_everything_that_it_touches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(op: Op, input: Labels) -> Labels:  # noqa: A002
        raise UnsupportedCall("not today")

    monkeypatch.setattr(_RULES[nn.LSTM], "propagate", refuse)
    graph = graph_of(nn.Sequential(nn.Linear(4, 5), nn.LSTM(5, 3)), tokens())
    assert not graph.groups
    assert "the rule of LSTM does not support this call (_1: not today)" in str(graph)


def test_a_call_that_does_not_fit_the_parameters_of_its_rule_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow_minded(op: Op, left: Labels, right: Labels) -> Labels:
        return left

    monkeypatch.setattr(elementwise, "propagate", narrow_minded)
    model = images(lambda self, x: torch.lerp(x, self.b, 0.5), b=parameter(1, 8, 1, 1))
    graph = check_invariant(model, image(), 0)
    assert "the rule of lerp does not support this call (lerp: too many positional arguments)" in str(graph)


@pytest.mark.parametrize("bug", [AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError])
def test_a_bug_in_a_rule_is_an_error_that_names_op_node_and_rule(
    monkeypatch: pytest.MonkeyPatch, bug: type[Exception]
) -> None:
    def broken(op: Op, input: Labels, dim: int | None = None) -> Labels:  # noqa: A002
        raise bug("oops")

    monkeypatch.setattr(_RULES["softmax"], "propagate", broken)
    traced = fxprune.trace(vectors(lambda self, x: x.softmax(1)), torch.randn(3, 4))
    message = rf"the rule \S*broken for softmax failed at node %softmax .*: {bug.__name__}: .*oops.*please report it"
    with pytest.raises(fxprune.FxpruneError, match=message) as caught:
        fxprune.analyze(traced)
    assert isinstance(caught.value.__cause__, bug)


@dataclass
class Scores:
    scores: torch.Tensor
    hidden: tuple[torch.Tensor, ...] = ()


Pair = namedtuple("Pair", ["scores", "hidden"])


@pytest.mark.parametrize("container", [Scores, Pair, lambda a, b: {"all": [Scores(a), Pair(a, b)]}])
def test_what_is_returned_in_a_container_is_model_output(container: Callable[..., object]) -> None:
    model = net(
        lambda self, x: container(self.b(y := self.a(x)), (y.sum((1, 2)),)), a=nn.Linear(4, 5), b=nn.Linear(5, 2)
    )
    graph = graph_of(model, tokens())
    (outputs,) = (frozen for frozen in graph.frozen if frozen.reason == "model output")
    assert dimensions(outputs) == {"b.weight[0]", "b.bias[0]"}
    assert prunable(graph) == 5


def test_every_channel_of_a_parameter_is_in_one_group_or_frozen_once() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 8, 1, groups=2), nn.Flatten(), nn.Linear(288, 2)
    )
    graph = graph_of(model, image())
    seen = [int(c) for part in (*graph.groups, *graph.frozen) for c in part.channels]
    assert len(seen) == len(set(seen))
    on_parameters = {
        int(c) for dims in graph.parameters.values() for dim in dims if not isinstance(dim, int) for c in dim
    }
    assert on_parameters == set(seen)


def test_the_analysis_is_the_same_each_time_and_leaves_the_traced_model_alone() -> None:
    traced = fxprune.trace(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)), image())
    code = traced.code
    first, second = fxprune.analyze(traced), fxprune.analyze(traced)
    assert str(first) == str(second)
    assert [g.channels.tolist() for g in first.groups] == [g.channels.tolist() for g in second.groups]
    assert traced.code == code


def test_a_graph_that_was_not_traced_by_fxprune_is_refused() -> None:
    other = torch.fx.symbolic_trace(nn.Linear(4, 2))
    with pytest.raises(fxprune.FxpruneError, match=r"has no value: pass what fxprune\.trace returned"):
        fxprune.analyze(other)


def test_contractions_name_where_channels_enter_a_layer() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), tokens())
    assert graph.contractions == {"_2": (("_1", 2),)}


def test_a_shared_module_is_one_set_of_channels() -> None:
    model = net(
        lambda self, x: self.c(self.b(self.b(self.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2)
    )
    assert prunable(graph_of(model, tokens())) == 6


def test_heads_are_tried_as_wholes_where_channels_are_stuck_and_positions_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[object] = []
    once = analysis._analyze
    monkeypatch.setattr(analysis, "_analyze", lambda *arguments: (tries.append(arguments), once(*arguments))[1])

    def attend(self: Any, x: Tensor) -> Tensor:
        q = self.a(x).unflatten(-1, (2, 4)).transpose(1, 2)
        bias = self.table[self.index].view(5, 5, 2).permute(2, 0, 1)
        return self.b((((q @ q.mT + bias).softmax(-1)) @ q).transpose(1, 2).flatten(2))

    index = torch.arange(25) % 9
    tables = net(attend, a=nn.Linear(4, 8), b=nn.Linear(8, 2), table=parameter(9, 2), index=index)
    assert check_invariant(tables, tokens(), 4).groups
    assert len(tries) == 1
    masks = net(
        lambda self, x: (self.a(x) @ self.a(x).mT + self.m.view(5, 5)).softmax(-1), a=nn.Linear(4, 8), m=torch.ones(25)
    )
    check_invariant(masks, tokens(), 8)
    assert len(tries) == 2
    check_invariant(net(lambda self, x: self.a(x).unflatten(-1, (2, 4)).softmax(-1), a=nn.Linear(4, 8)), tokens())
    assert len(tries) == 4


@pytest.mark.parametrize(("function", "free"), [(torch.sigmoid, 0), (torch.tanh, 8)])
def test_what_the_next_call_reads_is_what_this_one_writes(function: Callable[[Tensor], Tensor], free: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.b(x := self.a(x)) + self.state.sum()
        self.state = function(x.detach().mean((0, 1)))
        return y

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), state=torch.zeros(8))
    check_invariant(model, tokens(), free)


def test_an_op_without_a_rule_is_frozen_and_reported() -> None:
    model = net(lambda self, x: torch.linalg.qr(self.a(x))[0], a=nn.Linear(4, 6))
    graph = fxprune.analyze(fxprune.trace(model, tokens()))
    assert "linalg_qr mixes channels (linalg_qr): 6 channels" in str(graph)


def test_products_that_nothing_counts_are_named_in_the_remarks() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(torch.fft.rfft(self.a(x)).real) + torch.cdist(x, x).sum()

    graph = fxprune.analyze(fxprune.trace(net(forward, a=nn.Linear(4, 8), b=nn.Linear(5, 2)), torch.zeros(2, 5, 4)))
    [remark] = graph.remarks
    assert remark == "not counted as FLOPs: fft_rfft (`fft_rfft`), cdist (`cdist`)"
    assert f"note: {remark}" in str(graph)


def test_lookups_and_layers_that_are_counted_are_in_no_remark() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 5))
    assert not fxprune.analyze(fxprune.trace(model, torch.zeros(2, 5, dtype=torch.long))).remarks

"""The table of rules: which calls a rule is for."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.channels import Labels
from fxprune.rules import conv, elementwise, find_rule, linear, order, reduce
from fxprune.rules.op import Op
from fxprune.rules.registry import _RULES, Rule, rule

GRAPH = fx.Graph()
X = GRAPH.placeholder("x")


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 2


class Named(nn.Conv2d):
    """A subclass that computes the same."""


@pytest.fixture
def registered() -> Iterator[None]:
    """Rules that a test registers are taken out again."""
    before = dict(_RULES)
    yield
    _RULES.clear()
    _RULES.update(before)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (GRAPH.call_method("relu", (X,)), elementwise.elementwise),
        (GRAPH.call_method("relu_", (X,)), elementwise.elementwise),
        (GRAPH.call_method("__add__", (X, X)), elementwise.elementwise),
        (GRAPH.call_function(torch.relu, (X,)), elementwise.elementwise),
        (GRAPH.call_function(torch.relu_, (X,)), elementwise.elementwise),
        (GRAPH.call_function(F.relu, (X,)), elementwise.elementwise),
        (GRAPH.call_function(operator.and_, (X, X)), elementwise.elementwise),
        (GRAPH.call_function(operator.iadd, (X, X)), elementwise.elementwise),
        (GRAPH.call_function(operator.matmul, (X, X)), linear.matmul),
        (GRAPH.call_function(torch.Tensor.permute, (X, 0)), order.permute),
        (GRAPH.call_function(torch.linalg.norm, (X,)), reduce.norm),
        (GRAPH.call_function(torch.linalg.polar if hasattr(torch.linalg, "polar") else torch.linalg.det, (X,)), None),
        (GRAPH.call_function(torch.cumsum, (X, 0)), None),
        (GRAPH.call_function(all, (X,)), None),
        (X, None),
    ],
)
def test_a_name_stands_for_all_spellings_of_an_op_and_for_no_other(node: fx.Node, expected: Rule[Any] | None) -> None:
    assert find_rule(node, None) is expected


def test_a_subclass_has_the_rule_of_its_base_unless_it_overrides_forward() -> None:
    node = GRAPH.call_module("conv", (X,))
    assert find_rule(node, nn.Conv2d(3, 3, 1)) is conv.conv_module
    assert find_rule(node, Named(3, 3, 1)) is conv.conv_module
    assert find_rule(node, Doubled(3, 3, 1)) is None
    assert find_rule(node, Doubled(3, 3, 1), overridden=True) is conv.conv_module
    assert find_rule(node, nn.TripletMarginLoss()) is None


@pytest.mark.usefixtures("registered")
def test_a_rule_keeps_its_three_functions_together() -> None:
    @rule(torch.frac)
    def own(op: Op, input: Labels, *more: object) -> Labels:  # noqa: A002
        """What it does."""
        return input

    cost = own.flops(lambda op, out, input: [])  # noqa: A006
    rewrite = own.rewrite(lambda op, input: None)  # noqa: A006
    assert find_rule(GRAPH.call_function(torch.frac, (X,)), None) is own
    assert (own.flops_of, own.rewrite_of, own.__doc__) == (cost, rewrite, "What it does.")


def test_arguments_that_do_not_fit_a_rule_are_told_from_those_that_do() -> None:
    assert linear.matmul.misfit(None, Labels.plain((2, 3)), other=Labels.plain((3, 2))) == ""
    assert linear.matmul.misfit(None, Labels.plain((2, 3))) == "missing a required argument: 'other'"
    assert order.unsqueeze.misfit(None, Labels.plain((2, 3)), Labels.plain(())) == "dim is a tensor"


def test_every_op_of_a_library_is_found_by_its_name() -> None:
    torchvision = pytest.importorskip("torchvision")
    assert torchvision
    for target in (torch.ops.torchvision.deform_conv2d, torch.ops.torchvision.deform_conv2d.default):
        assert find_rule(GRAPH.call_function(target, (X,)), None) is conv.deform_conv2d


@pytest.mark.parametrize("own", dict.fromkeys(_RULES.values()), ids=lambda own: own.propagate.__qualname__)
def test_cost_and_rewrite_take_every_call_that_the_rule_takes(own: Rule[Any]) -> None:
    _, *parameters = inspect.signature(own.propagate).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    positional = sum(p.kind is p.POSITIONAL_ONLY for p in parameters)
    for function, first in ((own.flops_of, 2), (own.rewrite_of, 1)):
        if function is not None:
            bind = inspect.signature(function).bind
            for names in (named, required):
                # `bind` raises for arguments that do not fit.
                assert bind(*[None] * (first + positional), *names).args
                assert bind(*[None] * (first + positional), **dict.fromkeys(names)).args

"""Bad input: what was given, why it cannot be, what to do; and the model is untouched."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from invariant import image, net, tokens
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import fxprune
from fxprune import FxpruneError


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))


def assert_refused(model: nn.Module, act: Callable[[], Any], message: str) -> None:
    """`act` raises an FxpruneError that reads so, and leaves the model as it was."""
    state, training = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with pytest.raises(FxpruneError, match=message):
        act()
    assert [module.training for module in model.modules()] == training
    for name, tensor in model.state_dict().items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(state[name]))


@pytest.mark.parametrize(
    ("flops", "message"),
    [
        (0, "flops (=0) must be positive and finite: a fraction in (0, 1], or a count above 1"),
        (-0.5, "flops (=-0.5) must be positive and finite: a fraction in (0, 1], or a count above 1"),
        (float("nan"), "flops (=nan) must be positive and finite: a fraction in (0, 1], or a count above 1"),
        (float("inf"), "flops (=inf) must be positive and finite: a fraction in (0, 1], or a count above 1"),
        ("0.5", "flops (='0.5') must be a number: a fraction in (0, 1], or a count above 1"),
        (True, "flops (=True) must be a number: a fraction in (0, 1], or a count above 1"),
        ([0.5], "flops (=[0.5]) must be a number: a fraction in (0, 1], or a count above 1"),
    ],
)
def test_a_budget_that_is_no_positive_number_is_refused(flops: Any, message: str) -> None:
    model = small()
    assert_refused(model, lambda: fxprune.prune(model, flops, example_inputs=image()), "^" + re.escape(message) + "$")


def test_a_budget_out_of_reach_tells_the_lowest_and_what_is_frozen() -> None:
    model = small()
    total = fxprune.count_flops(model, image())
    with pytest.raises(FxpruneError) as caught:
        fxprune.prune(model, 0.01, example_inputs=image())
    found = re.search(r"cannot be reached: the lowest is ([\d,]+) \(([\d.]+)%\)", str(caught.value))
    assert found, str(caught.value)
    lowest = int(found[1].replace(",", ""))
    assert "Frozen are 3 channels: model input (_0); 2 channels: model output." in str(caught.value)
    assert "Raise flops, or ignore less." in str(caught.value)
    reached = fxprune.prune(model, lowest, example_inputs=image())
    assert fxprune.count_flops(reached, image()) == lowest < total
    with pytest.raises(FxpruneError, match="cannot be reached"):
        fxprune.prune(model, lowest - 1, example_inputs=image())


def test_what_is_ignored_is_told_when_the_budget_is_out_of_reach() -> None:
    model = small()
    message = r"\d+ channels: ignored"
    assert_refused(model, lambda: fxprune.prune(model, 0.3, example_inputs=image(), ignore="0"), message)


@pytest.mark.parametrize(("pattern", "names"), [("encodr", "encoder"), ("head.*.x", "head")])
def test_a_pattern_that_matches_nothing_is_told_with_close_names(pattern: str, names: str) -> None:
    model = net(lambda self, x: self.head(self.encoder(x)), encoder=nn.Linear(4, 8), head=nn.Linear(8, 2))
    assert_refused(
        model,
        lambda: fxprune.prune(model, 0.5, example_inputs=tokens(), ignore=pattern),
        rf"^ignore pattern '{re.escape(pattern)}' matches no module of the model; close names are .*{names}",
    )


@pytest.mark.parametrize("value", [0, -8, 1.5, "8", True])
def test_a_multiple_that_is_no_whole_number_is_refused(value: Any) -> None:
    model = small()
    message = r"^round_to \(=.*\) must be a whole number of at least 1, or 'auto'$"
    assert_refused(model, lambda: fxprune.prune(model, 0.5, example_inputs=image(), round_to=value), message)


def test_a_model_of_ones_own_needs_example_inputs() -> None:
    model = small()
    message = (
        r"no example inputs: Sequential is neither .* pass example_inputs=, a tensor, a tuple of tensors or a dict"
    )
    assert_refused(model, lambda: fxprune.prune(model, 0.5), message)


def test_example_inputs_that_do_not_fit_are_told() -> None:
    model = small()
    assert_refused(
        model, lambda: fxprune.prune(model, 0.5, example_inputs={"pixels": image()}), r"do not fit `Sequential\.forward"
    )
    assert_refused(
        model, lambda: fxprune.prune(model, 0.5, example_inputs=image(4)), "Cannot trace `Sequential`.*in `0` .Conv2d."
    )


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_a_part_with_the_name_of_an_attribute_of_graph_modules_is_told_with_a_way_out(name: str) -> None:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(4, 8))
    model.add_module("out", nn.Linear(8, 2))
    assert_refused(
        model,
        lambda: fxprune.prune(model, 0.5, example_inputs=tokens()),
        rf"its part `{name}` has the name of an attribute .* `nn.Sequential\(model\)`",
    )
    wrapped = nn.Sequential(model)
    assert fxprune.verify(wrapped, fxprune.prune(wrapped, 0.5, example_inputs=tokens())) <= 1e-9


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.a(x)
        return self.a(-x)


def test_control_flow_on_values_tells_module_line_and_way_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branching())
    assert_refused(
        model,
        lambda: fxprune.prune(model, 0.5, example_inputs=tokens()),
        r"Cannot trace `Sequential`: in `1` \(Branching\), .*test_errors\.py:\d+: `if x\.sum.*leaves=\('1',\)",
    )


class Particular(nn.Module):
    def __init__(self, refuse: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.refuse = refuse

    def forward(self, x: Tensor) -> Tensor:
        wrong = x.shape[-1] != 32
        if self.refuse == "assert":
            assert not wrong
        elif self.refuse == "torch._assert":
            torch._assert(x.shape[-1] == 32, "the images are too small.")
        elif wrong:
            raise ValueError("the images are too small")
        return self.a(x)


@pytest.mark.parametrize(
    ("refuse", "said"),
    [
        ("assert", r"`assert not wrong`: AssertionError.*\. "),
        ("torch._assert", r"`torch\._assert\(.*`: AssertionError: the images are too small\. "),
        ("raise", r"`raise ValueError.*`: ValueError: the images are too small\. "),
    ],
)
def test_what_the_model_itself_refuses_is_told_with_the_shapes_it_was_given(refuse: str, said: str) -> None:
    advice = r"The model refuses what .*: pass example_inputs that it accepts; these are of shape \(2, 3, 6, 6\)\."
    model = Particular(refuse)
    message = rf"Cannot trace `Particular`: in the model itself, .*test_errors\.py:\d+: {said}{advice}$"
    assert_refused(model, lambda: fxprune.prune(model, 0.5, example_inputs=image()), message)
    nested = nn.Sequential(model)
    message = rf"in `0` \(Particular\), .*{said}{advice} If it accepts them when .*: `trace\(\.\.\., leaves=\('0',\)\)`"
    assert_refused(nested, lambda: fxprune.prune(nested, 0.5, example_inputs=image()), message)


def test_a_module_that_cannot_be_traced_works_as_a_leaf_and_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), Branching(), nn.Linear(8, 6), nn.Linear(6, 2))
    graph = fxprune.analyze(fxprune.trace(model, tokens(), leaves=(Branching,)))
    assert sorted(map(len, graph.groups)) == [6, 6]
    assert any("Branching" in frozen.reason for frozen in graph.frozen)
    pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, fxprune.scores(graph), flops=0.8))
    assert fxprune.verify(model, pruned, tokens()) <= 1e-9


def test_an_error_in_a_layer_of_torch_names_the_layer_only() -> None:
    model = small()
    assert_refused(
        model, lambda: fxprune.trace(model, 5), r"^Cannot trace `Sequential`: in `0` \(Conv2d\): TypeError: "
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    model = small()
    with torch.no_grad():
        model[2].weight[3, 0, 0, 0] = value
    message = r"^weight 2\.weight has NaN or infinite entries"
    assert_refused(model, lambda: fxprune.prune(model, 0.5, example_inputs=image()), message)


def test_an_unknown_method_and_bad_scores_are_refused() -> None:
    model = small()
    assert_refused(
        model, lambda: fxprune.prune(model, 0.5, example_inputs=image(), method="l3"), r"^method \(='l3'\) is not known"
    )
    for bad, message in ((np.ones(3), "scores have shape"), (np.full(21, np.nan), "scores are not finite")):
        assert_refused(
            model, lambda bad=bad: fxprune.prune(model, 0.5, example_inputs=image(), method=lambda _: bad), message
        )


def test_a_plan_of_another_model_is_refused() -> None:
    model, other = small(), nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 2, 1))
    plan = fxprune.plan_of(fxprune.prune(model, 0.5, example_inputs=image()))
    graph = fxprune.analyze(fxprune.trace(other, image()))
    with pytest.raises(FxpruneError, match=r"plan (prunes|keeps|removes)"):
        fxprune.rewrite(graph, plan)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"0.weight": {0: [0, 1]}, "2.weight": {1: [0, 2]}}, "tied to them are removed elsewhere"),
        ({"0.weight": {0: []}, "0.bias": {0: []}, "2.weight": {1: []}}, "without any index"),
        ({"0.weight": {0: [0, 99]}}, "keeps index 99 of 0.weight"),
        ({"0.weight": {2: [0]}}, "which this model does not have as channels|removes frozen channels"),
        ({"4.weight": {0: [0]}, "4.bias": {0: [0]}}, "removes frozen channels of 4.weight.*: model output"),
        ({"nothing": {0: [0]}}, "plan prunes nothing in dimension 0"),
    ],
)
def test_a_plan_that_does_not_hold_together_is_refused(kept: Any, message: str) -> None:
    graph = fxprune.analyze(fxprune.trace(small(), image()))
    with pytest.raises(FxpruneError, match=message):
        fxprune.rewrite(graph, fxprune.Plan(kept, 0, 0, 0))


def test_a_model_that_was_not_pruned_has_no_plan() -> None:
    with pytest.raises(FxpruneError, match=r"Conv2d has no plan: only what .* returns has one"):
        fxprune.plan_of(nn.Conv2d(3, 2, 1))
    with pytest.raises(FxpruneError, match="has no plan"):
        fxprune.verify(small(), small(), image())


def test_an_op_without_a_rule_is_frozen_and_reported() -> None:
    model = net(lambda self, x: torch.linalg.qr(self.a(x))[0], a=nn.Linear(4, 6))
    graph = fxprune.analyze(fxprune.trace(model, tokens()))
    assert "linalg_qr mixes channels (linalg_qr): 6 channels" in str(graph)


def test_a_part_named_like_a_keyword_is_refused() -> None:
    model = nn.ModuleDict({"in": nn.Linear(3, 4)})
    message = r"^Cannot trace `ModuleDict`: in `in`, 'in' is a keyword of Python, .* Rename it\.$"
    assert_refused(model, lambda: fxprune.trace(model, torch.randn(2, 3)), message)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_is_refused() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(FxpruneError, match=r"^Cannot trace a scripted module: .* before `torch.jit.script`\.$"):
        fxprune.trace(model, torch.randn(2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_model_with_a_scripted_part_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), torch.jit.script(nn.Linear(8, 2)))
    with pytest.raises(FxpruneError, match=r"Cannot trace `Sequential`: its part `1` is a scripted module, .* made of"):
        fxprune.trace(model, torch.randn(3, 4))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_refused_with_the_place_of_the_model_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inside = "module" if wrap is nn.DataParallel else "_orig_mod"
    with pytest.raises(FxpruneError, match=rf"Prune the model inside it, `model\.{inside}`, and wrap the result again"):
        fxprune.prune(wrap(small()), 0.5, example_inputs=image())


def test_an_array_of_numpy_is_no_input() -> None:
    with pytest.raises(FxpruneError, match=r"a numpy array of shape \(.*\): models take tensors, give torch.from"):
        fxprune.prune(small(), 0.5, example_inputs=image().numpy())


def test_inputs_may_have_been_computed_with_gradients() -> None:
    model = small()
    computed = image().requires_grad_() * 1.0
    for inputs in (computed, image().requires_grad_()):
        pruned = fxprune.prune(model, 0.7, example_inputs=inputs, compensate=False)
        assert fxprune.verify(model, pruned) < 1e-9
        assert fxprune.verify(model, pruned, inputs) < 1e-9


def test_another_model_than_the_one_that_was_pruned_is_not_verified() -> None:
    wide = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
    narrow = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    pruned = fxprune.prune(wide, 0.7, example_inputs=torch.randn(2, 3), compensate=False)
    with pytest.raises(FxpruneError, match=r"^0\.weight has shape \(4, 3\), .* not the model that was pruned$"):
        fxprune.verify(narrow, pruned)


def test_quantised_models_are_refused_with_what_to_do_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    message = r"`0` is of type torch\.ao\.nn\.quantized.*Linear, of which no channels .* Prune the model before"
    assert_refused(model, lambda: fxprune.prune(packed, 0.5, example_inputs=torch.randn(2, 8)), message)
    model[0].weight = nn.Parameter(TwoTensor(model[0].weight.detach(), torch.zeros(8, 8)))
    with pytest.raises(FxpruneError, match=r"`0\.weight` is of type TwoTensor, of which no channels"):
        fxprune.trace(model, torch.randn(2, 8))


@pytest.mark.parametrize("model", [nn.Sequential(), nn.Sequential(nn.ReLU(), nn.Flatten())])
def test_a_model_without_flops_is_refused(model: nn.Module) -> None:
    assert_refused(model, lambda: fxprune.prune(model, 0.5, example_inputs=image()), "there is nothing to prune")

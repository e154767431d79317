"""Models and inputs that cannot be traced: the message says where and why, and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from invariant import image, tokens
from refusals import assert_refused, small
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import fxprune
from fxprune import FxpruneError


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


class Skipping(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.zeros(2).uniform_().lt(0.1).all() else self.a(x)


def test_random_numbers_that_decide_in_eval_are_told_apart_from_the_input() -> None:
    model = nn.Sequential(nn.Linear(4, 8), Skipping())
    assert_refused(
        model,
        lambda: fxprune.prune(model, 0.5, example_inputs=tokens()),
        r"`__bool__` asks for the value of a tensor that is drawn at random.*in eval too.*`if self\.training`",
    )


def test_control_flow_on_values_tells_module_line_and_way_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branching())
    assert_refused(
        model,
        lambda: fxprune.prune(model, 0.5, example_inputs=tokens()),
        r"Cannot trace `Sequential`: in `1` \(Branching\), .*test_refusals\.py:\d+: `if x\.sum.*leaves=\('1',\)",
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
    advice = r"The model refuses these inputs, of shape \(2, 3, 6, 6\): pass example_inputs that it accepts\."
    model = Particular(refuse)
    message = rf"Cannot trace `Particular`: in the model itself, .*test_refusals\.py:\d+: {said}{advice}$"
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
    with pytest.raises(FxpruneError, match=r"Cannot trace `Sequential`: its part `1` is a scripted module, "):
        fxprune.trace(model, torch.randn(3, 4))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_refused_with_the_place_of_the_model_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inside = "module" if wrap is nn.DataParallel else "_orig_mod"
    with pytest.raises(FxpruneError, match=rf"Prune the model inside it, `model\.{inside}`, and wrap the result again"):
        fxprune.prune(wrap(small()), 0.5, example_inputs=image())


def test_an_array_of_numpy_is_no_input() -> None:
    with pytest.raises(FxpruneError, match=r"a numpy array of shape \(.*\): models take tensors, give torch.from"):
        fxprune.prune(small(), 0.5, example_inputs=image().numpy())


def test_quantised_models_are_refused_with_what_to_do_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    message = r"`0` is of type torch\.ao\.nn\.quantized.*Linear, which channels cannot be taken from\. Prune"
    assert_refused(model, lambda: fxprune.prune(packed, 0.5, example_inputs=torch.randn(2, 8)), message)
    model[0].weight = nn.Parameter(TwoTensor(model[0].weight.detach(), torch.zeros(8, 8)))
    with pytest.raises(FxpruneError, match=r"`0\.weight` is of type TwoTensor, which channels cannot be taken from"):
        fxprune.trace(model, torch.randn(2, 8))

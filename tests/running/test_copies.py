"""Copies of models share nothing with the original, and are on the meta device where they should be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running.copies import (
    META,
    DeepcopyTensorsWith,
    copy_module,
    meta_copy,
    meta_like,
    named_tensors,
    parameters_and_buffers,
    with_zeros,
)


class Tied(nn.Module):
    """A tied weight, a buffer outside the `state_dict`, and values of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.settings, self.empty, self.sizes = {"p": [1, 2]}, [], (1, 2)
        self.nothing = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) * self.scale


class Counted(nn.Linear):
    """Has a way of its own to be copied."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        Counted.copies += 1
        result = Counted(3, 3)
        result.load_state_dict(self.state_dict())
        return result


def test_a_copy_shares_nothing_that_can_change() -> None:
    model = Tied().train(False)
    result: Any = copy_module(model)
    x = torch.randn(2, 3)
    assert torch.equal(result(x), model(x))
    assert result.b.weight is result.a.weight
    assert not {id(t) for t in parameters_and_buffers(result)} & {id(t) for t in parameters_and_buffers(model)}
    assert result.settings == model.settings
    assert result.settings["p"] is not model.settings["p"]
    assert result.empty is not model.empty
    assert result.sizes is model.sizes
    assert not result.training
    assert [type(module) for module in result.modules()] == [type(module) for module in model.modules()]


def test_a_module_that_copies_itself_in_its_own_way_does() -> None:
    model = nn.Sequential(Counted(3, 3), nn.ReLU())
    x, before = torch.randn(2, 3), Counted.copies
    assert torch.equal(copy_module(model)(x), model(x))
    assert Counted.copies == before + 1


@pytest.mark.parametrize("hooks", [True, False])
def test_forward_hooks_are_left_out_if_asked_but_those_of_children_stay(hooks: bool) -> None:
    model = nn.Sequential(nn.Identity())
    model.register_forward_hook(lambda module, inputs, output: output * 10)
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    assert copy_module(model, hooks=hooks)(torch.zeros(1)) == (10 if hooks else 1)


def test_a_function_keeps_what_is_not_of_the_model() -> None:
    x = torch.zeros(1, 3)
    outside, store = nn.Linear(3, 3), {"module": nn.Linear(2, 2)}

    def function(x: Tensor, *, times: int = 2) -> Any:
        """What it says."""
        return outside, store, model, times

    model = nn.Sequential(nn.Linear(3, 3))
    model.function = function  # type: ignore[assignment]
    clone: Any = copy_module(model)
    assert clone.function is not function
    assert (clone.function.__doc__, clone.function.__name__) == (function.__doc__, "function")
    assert clone.function(x) == (outside, store, clone, 2)
    assert function(x) == (outside, store, model, 2)


def test_a_tensor_with_a_history_is_copied_as_a_value() -> None:
    model: Any = nn.Linear(3, 3)
    model.kept = model.weight * 2
    result: Any = copy_module(model)
    assert torch.equal(result.kept, model.kept)
    assert result.kept.grad_fn is None


def test_deepcopy_makes_of_each_tensor_what_it_is_asked_for() -> None:
    tensor = torch.ones(2)
    with DeepcopyTensorsWith(lambda given: given + 1):
        first, second = copy.deepcopy([tensor, tensor])
    assert first is second
    assert first.tolist() == [2.0, 2.0]
    assert copy.deepcopy(tensor).tolist() == [1.0, 1.0]


def test_a_copy_on_the_meta_device_knows_the_original_of_each_tensor() -> None:
    model = Tied().requires_grad_(False)
    twin, real = meta_copy(model)
    ours, theirs = named_tensors(model), named_tensors(twin)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert tensor.device == META
        assert (tensor.shape, tensor.dtype, tensor.requires_grad) == (ours[name].shape, ours[name].dtype, False)
        assert real[id(tensor)] is ours[name]
    assert twin(torch.empty(5, 3, device="meta")).shape == (5, 3)


def test_a_lazy_module_has_no_copy_on_the_meta_device() -> None:
    with pytest.raises(FxpruneError, match="lazy modules: run it once"):
        meta_copy(nn.LazyLinear(3))


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.t(), lambda x: x.half()])
def test_meta_like_keeps_size_strides_and_type(change: Callable[[Tensor], Tensor]) -> None:
    tensor = change(torch.zeros(2, 3))
    found = meta_like(tensor)
    assert (found.shape, found.stride(), found.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert found.device == META


def test_tensors_are_found_once_or_under_all_their_names() -> None:
    model = Tied()
    assert len(list(parameters_and_buffers(model))) == 4
    assert list(named_tensors(model)) == ["a.weight", "a.bias", "b.weight", "b.bias", "scale"]


def test_zeros_stand_for_what_is_on_the_meta_device() -> None:
    model = nn.Sequential(nn.Linear(300, 300, device="meta"), nn.BatchNorm1d(300, device="meta"), nn.Linear(300, 2))
    filled = with_zeros(model, torch.device("cpu"))
    assert filled(torch.randn(4, 300)).shape == (4, 2)
    assert filled.get_parameter("0.weight").untyped_storage().nbytes() == 4
    assert filled.get_parameter("2.weight") is model.get_parameter("2.weight")
    assert model.get_parameter("0.weight").is_meta
    assert with_zeros(model[2], META) is model[2]

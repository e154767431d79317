"""The cache of results on the meta device, and the functions in place of those that do not run there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import net
from same_model import assert_same
from torch import Tensor, nn

from fxprune import trace
from fxprune.tracing.meta_results import call_key, leaf_key, recall, remember


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def test_a_result_is_recalled_as_a_new_tensor_of_the_same_layout() -> None:
    key, value = call_key(("a test of results", meta(2, 3))), (meta(4, 2).t(), [meta(1)])
    assert recall(key) is None
    remember(key, value, [meta(2, 3)], [])
    found = recall(key)
    assert found is not None
    assert (found.same_as, found.written) == (None, ())
    (first, (second,)) = found.value
    assert (first.shape, first.stride(), second.shape) == ((2, 4), (1, 2), (1,))
    assert first is not value[0]


def test_a_call_in_place_is_recalled_by_the_number_of_its_tensor() -> None:
    key, x, y = call_key("a test of calls in place"), meta(2), meta(2)
    remember(key, y, [x, y], [y])
    found = recall(key)
    assert found is not None
    assert (found.value, found.same_as, found.written) == (None, 1, (1,))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (meta(2, 3), meta(3, 2)), (meta(2, 2), meta(2, 2).t()), ((1,), [1]), (slice(1), slice(2))],
)
def test_arguments_that_may_give_other_layouts_have_other_keys(one: Any, other: Any) -> None:
    assert call_key((one,)) != call_key((other,))


def test_what_cannot_be_hashed_has_no_key() -> None:
    assert call_key({1: 2}) is None
    remember(None, meta(2), [], [])
    assert recall(None) is None


def test_the_key_of_a_layer_has_its_settings_and_its_tensors() -> None:
    def key(module: nn.Module) -> Any:
        return leaf_key(module, (), (meta(2, 3),))

    assert key(nn.Conv2d(3, 4, 3)) == key(nn.Conv2d(3, 4, 3)) is not None
    assert key(nn.Conv2d(3, 4, 3)) != key(nn.Conv2d(3, 4, 3, stride=2))
    assert key(nn.Linear(3, 4)) != key(nn.Linear(3, 5))
    assert key(net(lambda self, x: x)) is None


def filled(self: Any, x: Tensor) -> Tensor:
    value = self.value.to(x.dtype)
    return torch.full((2,), value) + torch.full_like(x[0], value) + x.new_full((2,), value) + x.cpu()


def test_tensors_are_filled_with_the_value_of_a_tensor() -> None:
    model = net(filled, value=torch.tensor(3.0))
    assert_same(model, trace(model, torch.randn(2, 2)), torch.randn(2, 2))


def test_the_window_of_istft_is_not_checked_on_the_meta_device() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, 8, window=self.window, return_complex=True)
        return torch.istft(spectrum, 8, window=self.window)

    model = net(forward, window=torch.hann_window(8))
    assert_same(model, trace(model, torch.randn(2, 32)), torch.randn(2, 32))

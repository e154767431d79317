"""Branches at the edge of a size, of code that modules share, and for what `squeeze()` leaves: one for all sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import image, net, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import FxpruneError
from fxprune.verification import TOLERANCE


def model_of(forward: Any, **more: Any) -> nn.Module:
    return randomise(net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), **more))


def _one_of(x: Tensor) -> Tensor:
    return x.sum(0, keepdim=True) if x.shape[0] > 1 else x


def _with_shared_code(self: Any, x: Tensor) -> Tensor:
    y = self.a(x) * _one_of(self.table)
    return self.b(y + _one_of(y))  # type: ignore[no-any-return]


@pytest.mark.parametrize("example", [1, 3])
def test_code_that_asks_for_fixed_sizes_too_is_told_the_truth_of_them(example: int) -> None:
    model = model_of(_with_shared_code, table=nn.Parameter(torch.randn(4, 8, 1, 1)))
    pruned = fxprune.prune(model, 0.6, example_inputs=image(batch=example).double(), compensate=False)
    for batch in (1, 2, 3):
        for training in (False, True):
            assert fxprune.verify(model, pruned, image(batch=batch).double(), training=training) <= TOLERANCE


def _filled_up_or_cut(self: Any, x: Tensor) -> Tensor:
    """As in TimesFM."""
    y, n = self.a(x), x.shape[2]
    if n < 6:
        y = torch.cat([y.new_zeros(y.shape[0], 8, 6 - n, y.shape[3]), y], 2)
    elif n > 6:
        y = y[:, :, -6:]
    return self.b(y)  # type: ignore[no-any-return]


def _halved_or_cut(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y = y / 2 if y.shape[2] < 6 else y
    return self.b(y[:, :, :6] if y.shape[2] > 6 else y)  # type: ignore[no-any-return]


def _halved_or_resized(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y = y if y.shape[2] >= 6 else y / 2
    return self.b(y.tanh() if not y.shape[2] <= 6 else y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "right"), [(_filled_up_or_cut, {6, 4}), (_halved_or_cut, {6, 9}), (_halved_or_resized, {6})]
)
def test_at_the_edge_of_two_branches_the_graph_has_one_that_does_the_same_there(forward: Any, right: set[int]) -> None:
    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=6).double(), compensate=False)
    for size in (4, 6, 9):
        if size in right:
            for training in (False, True):
                assert fxprune.verify(model, pruned, image(size=size).double(), training=training) <= TOLERANCE
        else:
            with pytest.raises(FxpruneError, match="when the model was traced"):
                pruned(image(size=size).double())


def test_where_only_one_side_of_an_edge_is_asked_for_the_graph_has_the_side_of_the_example() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(F.pad(y, (0, 0, 0, 6 - y.shape[2])) if y.shape[2] < 6 else y)  # type: ignore[no-any-return]

    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=6).double(), compensate=False)
    assert fxprune.verify(model, pruned, image(size=9).double()) <= TOLERANCE
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned(image(size=5).double())


def _squeezed(self: Any, x: Tensor) -> Tensor:
    """As in SepFormer."""
    y = self.b(self.a(x)).mean((2, 3), keepdim=True)[:, :1, :, 0].expand(-1, -1, 7)
    return torch.squeeze(y, 1) if torch.squeeze(y).dim() == 1 else torch.squeeze(y)


def _squeezed_back(self: Any, x: Tensor) -> Tensor:
    y = self.b(self.a(x)).mean((2, 3)).squeeze()
    return y.unsqueeze(0) if y.ndim == 1 else y


@pytest.mark.parametrize("example", [1, 2])
@pytest.mark.parametrize(("forward", "right"), [(_squeezed, True), (_squeezed_back, False)])
def test_branches_for_what_squeeze_leaves_of_one_sample(forward: Any, right: bool, example: int) -> None:
    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(batch=example).double(), compensate=False)
    for batch in (1, 2, 3):
        if right or (batch == 1) == (example == 1):
            for training in (False, True):
                assert fxprune.verify(model, pruned, image(batch=batch).double(), training=training) <= TOLERANCE
        else:
            with pytest.raises(FxpruneError, match=r"number_of_sizes.* when the model was traced"):
                pruned(image(batch=batch).double())

"""The traced model has the tensors and modules of the original."""

from __future__ import annotations

import copy

import torch
from same_model import assert_same, make
from torch import Tensor, nn

from fxprune.tracing.tracer import trace


def test_copy_false_shares_the_tensors_but_not_the_modules() -> None:
    model = make("test_resnet")
    shared, copied = trace(model, torch.randn(1, 3, 64, 64), copy=False), trace(model, torch.randn(1, 3, 64, 64))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert shared.state_dict(keep_vars=True)[name] is tensor
        assert copied.state_dict(keep_vars=True)[name] is not tensor
    assert not set(map(id, shared.modules())) & set(map(id, model.modules()))


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.tied(self.again(self.first(x)))
        return result


def test_shared_modules_and_tied_weights_stay_so() -> None:
    model = Sharing()
    traced = trace(model, torch.randn(2, 4))
    assert_same(model, traced, torch.randn(3, 4))
    assert traced.first is traced.again
    assert traced.tied.weight is traced.first.weight  # type: ignore[union-attr]
    assert copy.deepcopy(traced).tied.weight is not traced.first.weight  # type: ignore[union-attr]

"""Torch's contexts are watched while a model is traced, and as they were afterwards."""

from __future__ import annotations

from typing import Any

import torch
from invariant import net
from torch import Tensor, nn

from fxprune import trace
from fxprune.tracing.context_calls import context_patches


def test_what_is_replaced_is_there_again_after_a_trace() -> None:
    before = [(owner, name, vars(owner)[name]) for owner, name, _ in context_patches() if name in vars(owner)]

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            assert any(vars(owner)[name] is not value for owner, name, value in before)
            return self.a(x.float())

    trace(net(forward, a=nn.Linear(4, 2)), torch.zeros(3, 4))
    assert before
    assert all(vars(owner)[name] is value for owner, name, value in before)

"""`torch.FloatTensor` and its like, asked and called by a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, nn

import fxprune


def _asks(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    kinds = (torch.LongTensor, torch.FloatTensor)
    return self.b(x * 2 if isinstance(x, kinds) and not isinstance(x, torch.IntTensor) else x)


def _makes(self: Any, x: Tensor) -> Tensor:
    scale = torch.FloatTensor(x.size(0), 1).fill_(0.5) + torch.FloatTensor(x.size()).zero_().sum(1, keepdim=True)
    return self.b(self.a(x) * scale * torch.FloatTensor([0.25]) + torch.LongTensor(1).zero_())


def _converts(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x.type(torch.DoubleTensor).type(torch.FloatTensor)) * torch.FloatTensor(x)[:, :1])


@pytest.mark.parametrize("forward", [_asks, _makes, _converts])
def test_types_of_tensors_are_those_of_the_model(forward: Callable[..., Tensor]) -> None:
    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)).eval(), torch.randn(5, 4)
    own = torch.FloatTensor
    traced = fxprune.trace(model, x[:3])
    assert torch.FloatTensor is own
    assert torch.equal(traced(x), model(x))
    pruned = fxprune.prune(model, 0.5, example_inputs=x[:3], compensate=False)
    assert fxprune.verify(model, pruned) <= 1e-12
    assert torch.FloatTensor is own


def test_a_tensor_made_past_torch_functions_is_refused_with_what_to_write_instead() -> None:
    model = net(lambda self, x: self.a(x) * torch.Tensor(x.size(0), 1).fill_(0.5), a=nn.Linear(4, 8))
    with pytest.raises(fxprune.FxpruneError, match=r"write `torch\.empty\(size\)`"):
        fxprune.trace(model, torch.randn(3, 4))

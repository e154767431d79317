"""A BatchNorm's outputs get the moments that they have in the original."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.compensation.recalibration import recalibrate


def norm(width: int) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(width).eval()
    with torch.no_grad():
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2.0)
        module.weight.normal_()
        module.bias.normal_()
    return module


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)


@pytest.mark.parametrize("gain", [1.7, 0.4])
def test_outputs_have_the_moments_of_the_originals(gain: float) -> None:
    torch.manual_seed(0)
    original, kept = norm(6), torch.tensor([0, 2, 5])
    pruned = nn.BatchNorm2d(3).eval()
    pruned.load_state_dict({name: x[kept] if x.dim() else x for name, x in original.state_dict().items()})
    before = [torch.randn(8, 6, 5, 5) * 1.3 + 0.4 for _ in range(2)]
    now = [gain * x[:, kept] - 0.8 for x in before]
    recalibrate(pruned, original, kept, before, now)
    with torch.no_grad():
        expected, got = moments(original(torch.cat(before))[:, kept]), moments(pruned(torch.cat(now)))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_inputs_that_are_the_same_change_nothing_and_large_gains_are_limited() -> None:
    torch.manual_seed(0)
    original, same = norm(4), norm(4)
    same.load_state_dict(original.state_dict())
    inputs = [torch.randn(4, 4, 3, 3)]
    recalibrate(same, original, torch.arange(4), inputs, inputs)
    assert all(torch.equal(a, b) for a, b in zip(same.buffers(), original.buffers(), strict=True))
    recalibrate(same, original, torch.arange(4), inputs, [100 * x for x in inputs])
    assert ((same.running_var + same.eps) / (original.running_var + original.eps)).max() <= 16.001

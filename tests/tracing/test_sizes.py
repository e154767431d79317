"""Sizes, and numbers computed from them, are computed by the graph."""

from __future__ import annotations

import math

import torch
from same_model import assert_same, targets
from torch import Tensor, nn
from torch.nn import functional

from fxprune.tracing.tracer import trace


class Sizes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = torch.arange(h, device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(rows, torch.linspace(-1, 1, w), indexing="ij"))
        mask = torch.zeros(h, w) + torch.eye(max(h, w))[:h, :w] * torch.full((h, 1), 2.0)
        side = int(math.sqrt(h * w))
        assert all(isinstance(size, int) for size in x.shape)
        assert type(x) is Tensor
        assert x.ndim == len(x.shape) == 4
        scaled = functional.interpolate(x * (side / (c**0.5)), size=(h // 2 + 1, round(w / 2)))
        padded = functional.pad(scaled, (0, w - scaled.size(-1), 0, h - scaled.shape[2]))
        return padded.view(b, -1).mean(1) + x.reshape(b, c, h * w).sum((1, 2)) + (grid.sum(0) + mask).sum()


def test_sizes_factories_and_arithmetic_on_sizes_are_computed_at_run_time() -> None:
    traced = trace(Sizes(), torch.randn(2, 4, 6, 8))
    assert_same(Sizes(), traced, torch.randn(3, 4, 9, 7))
    assert {torch.arange, torch.linspace, torch.eye, torch.full, torch.zeros} <= set(targets(traced))


class Shapes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        assert isinstance(shape, torch.Size)
        assert isinstance(x.size()[1:], tuple)
        assert str(shape) == f"torch.Size({[int(size) for size in shape]})"
        assert shape == torch.Size(shape)
        assert torch.Size([*shape]) == shape
        assert x[0, 0, 0, 0].shape.numel() == 1
        flat = x.view(-1, shape[1:].numel()) / shape.numel()
        return flat.sum(1) * (shape[:1] + shape[2:]).numel() / len(x) + x.new_zeros(shape).flatten(1).sum(1)


def test_lengths_and_numbers_of_elements_are_computed_at_run_time() -> None:
    traced = trace(Shapes(), torch.randn(2, 4, 6, 8))
    assert_same(Shapes(), traced, torch.randn(3, 4, 9, 7))

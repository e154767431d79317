"""A model to save, and what checkpoints hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from invariant import image, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

import fxprune
from fxprune.running.copies import named_tensors


class Block(nn.Module):
    """Tied weights, a buffer outside of the state_dict, grouped convolutions and two norms."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.first = nn.Conv2d(width, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.rand(width, 1, 1) + 1, persistent=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)) * self.scale)
        x = torch.relu(self.first(self.depthwise(x)))
        return self.head(self.second(x).mean((2, 3)))


def pruned_block(seed: int = 0, **settings: Any) -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(seed)
    model = randomise(Block(), seed).float()
    return model, fxprune.prune(model, example_inputs=image(), **settings, compensate=False)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    first, second = named_tensors(a), named_tensors(b)
    assert list(first) == list(second)
    assert list(a.state_dict()) == list(b.state_dict())
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert (tensor.dtype, tensor.stride(), tensor.requires_grad) == (
            second[name].dtype,
            second[name].stride(),
            second[name].requires_grad,
        ), name
    assert [(name, part.training) for name, part in a.named_modules()] == [
        (name, part.training) for name, part in b.named_modules()
    ]
    assert fxprune.plan_of(a) == fxprune.plan_of(b)


def record_of(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fxprune"])


def change(path: Path, edit: Any) -> None:
    """Rewrite a checkpoint with another record."""
    record = record_of(path)
    record = edit(record) or record
    save_file(load_file(path), path, metadata={"fxprune": record if isinstance(record, str) else json.dumps(record)})


def with_value(*path: Any, value: Any) -> Any:
    """An edit for `change`: another value at a place in the record."""

    def edit(record: dict[str, Any]) -> None:
        inner: Any = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return edit

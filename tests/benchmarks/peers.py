"""Torch-Pruning at a FLOPs budget: it takes a ratio of channels, which bisection finds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune import count_flops

__all__ = ["PEERS", "prune_with_peer"]

# Name -> its importance, and whether layers compete with each other (its `global_pruning`).
PEERS = {
    "tp-magnitude": ("GroupMagnitudeImportance", False),
    "tp-magnitude-global": ("GroupMagnitudeImportance", True),
    "tp-taylor": ("GroupTaylorImportance", False),
    "tp-taylor-global": ("GroupTaylorImportance", True),
}


def prune_with_peer(
    name: str,
    base: nn.Module,
    budget: float,
    example: Tensor,
    labelled: Iterable[tuple[Tensor, Tensor]],
    round_to: int = 1,
) -> nn.Module:
    """The largest model with at most `budget` times the FLOPs of `base` that Torch-Pruning makes in one step."""
    gradients = _gradients(base, labelled) if "taylor" in name else None
    limit = budget * count_flops(base, example)
    return largest(lambda ratio: _pruned(name, base, ratio, example, gradients, round_to), limit, example)


def largest(prune: Callable[[float], nn.Module], limit: float, example: Tensor, steps: int = 12) -> nn.Module:
    """The model with the smallest pruning ratio in (0, 1) whose FLOPs are within the limit, by bisection."""
    low, high, found = 0.0, 1.0, None
    for _ in range(steps):
        middle = (low + high) / 2
        model = prune(middle)
        if count_flops(model, example) <= limit:
            high, found = middle, model
        else:
            low = middle
    if found is None:
        raise ValueError(f"no ratio below 1 comes down to {limit:.0f} FLOPs")
    return found


def _pruned(
    name: str,
    base: nn.Module,
    ratio: float,
    example: Tensor,
    gradients: list[Tensor | None] | None,
    round_to: int = 1,
) -> nn.Module:
    import torch_pruning

    importance, competing = PEERS[name]
    model = copy.deepcopy(base).eval()
    for parameter, gradient in zip(model.parameters(), gradients or [], strict=False):
        parameter.grad = None if gradient is None else gradient.clone()
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner: Any = torch_pruning.pruner.BasePruner(
            model,
            example,
            importance=getattr(torch_pruning.importance, importance)(),
            global_pruning=competing,
            pruning_ratio=ratio,
            ignored_layers=[classifier],
            round_to=round_to if round_to > 1 else None,
        )
        pruner.step()
    model.zero_grad()
    return model


def _gradients(base: nn.Module, labelled: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor | None]:
    model = copy.deepcopy(base).eval().requires_grad_(True)
    with torch.enable_grad():
        for images, labels in labelled:
            F.cross_entropy(model(images), labels).backward()
    return [parameter.grad for parameter in model.parameters()]

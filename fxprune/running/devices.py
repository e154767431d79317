"""Where a model is, and what it is called with beside it."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from fxprune.running.trees import Tree, map_tensors

__all__ = ["device_of", "on_device_of"]


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's parameters and buffers; None where there are none, or they are on several."""
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def on_device_of(model: nn.Module, tree: Tree) -> Tree:
    """The tree's tensors on the model's device, where it has just one that holds values.

    Examples:
        >>> on_device_of(nn.Linear(2, 2), {"x": torch.zeros(1, 2)})["x"].device
        device(type='cpu')
    """
    device = device_of(model)
    if device is None or device.type == "meta":
        return tree
    return map_tensors(lambda tensor: tensor.to(device), tree)

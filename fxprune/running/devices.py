"""The device that a model is on."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from fxprune.running.trees import Tree, map_tensors

__all__ = ["device_of", "on_device_of"]


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's parameters and buffers; None if there are none, or if they are on several.

    Examples:
        >>> device_of(nn.Linear(2, 2))
        device(type='cpu')
    """
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def on_device_of(model: nn.Module, tree: Tree) -> Tree:
    """The same values with their tensors on the model's device; as they are if it has none, several or "meta".

    Examples:
        >>> on_device_of(nn.Linear(2, 2), {"x": torch.zeros(1, 2)})["x"].device
        device(type='cpu')
    """
    device = device_of(model)
    if device is None or device.type == "meta":
        return tree
    return map_tensors(lambda tensor: tensor.to(device), tree)

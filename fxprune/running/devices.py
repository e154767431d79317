"""The device that a model is on."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.running.trees import Tree, map_tensors

__all__ = ["check_values", "device_of", "on_device_of"]


def device_of(model: nn.Module) -> torch.device | None:
    """The device of a model's parameters and buffers; None if there are none, or if they are on several.

    Examples:
        >>> device_of(nn.Linear(2, 2))
        device(type='cpu')
    """
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def check_values(user: str, *models: nn.Module) -> None:
    """Check that no parameter or buffer of the models is on the meta device, where it has a size and no values.

    Raises:
        FxpruneError: one is; `user` is what needs the values.
    """
    for model in models:
        named = itertools.chain(model.named_parameters(), model.named_buffers())
        missing = [name for name, tensor in named if tensor.is_meta]
        if missing:
            more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise FxpruneError(
                f"{type(model).__name__} has {missing[0]}{more} on the meta device, without the values that {user} "
                "needs: give it its weights (model.to_empty(device='cpu'), then load_state_dict), or build it without "
                "torch.device('meta'). trace, analyze, count_flops, and prune with method='random' and "
                "compensate=False need no values"
            )


def on_device_of(model: nn.Module, tree: Tree) -> Tree:
    """The same values with their tensors on the model's device; as they are if it has none, several or "meta".

    Tensors on the meta device stay there: they have no values to move.

    Examples:
        >>> on_device_of(nn.Linear(2, 2), {"x": torch.zeros(1, 2)})["x"].device
        device(type='cpu')
    """
    device = device_of(model)
    if device is None or device.type == "meta":
        return tree
    return map_tensors(lambda tensor: tensor if tensor.is_meta else tensor.to(device), tree)

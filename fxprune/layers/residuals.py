"""Residual connections: what is added to the output of a layer on its way."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["other_side"]

_SUMS = (operator.add, operator.iadd, torch.add)


def other_side(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """What a node's output is added to, in eval, and goes nowhere else; None where it goes another way.

    Args:
        node: of a traced model.
        modules: the model's, by name.
    """
    while len(node.users) == 1:
        follower = next(iter(node.users))
        if follower.target in _SUMS:
            others = [value for value in follower.args if value is not node]
            plain = len(follower.args) == 2 and not follower.kwargs and len(others) == 1
            return others[0] if plain and isinstance(others[0], fx.Node) else None
        if follower.op != "call_module" or not isinstance(modules[str(follower.target)], (_DropoutNd, nn.Identity)):
            return None
        node = follower
    return None

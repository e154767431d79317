"""Residual connections: what is added to the output of a layer on its way."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["Residual", "residual_of"]

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


@dataclass(frozen=True, eq=False)
class Residual:
    """A sum that a layer's output goes into, and nowhere else.

    Attributes:
        other: what is added to it.
        norm: the BatchNorm that is between, if any.
    """

    other: fx.Node
    norm: fx.Node | None


def residual_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Residual | None:
    """The sum that a node's output goes into, in eval, at most past one BatchNorm; None for any other way.

    Args:
        node: of a traced model.
        modules: the model's, by name.
    """
    norm = None
    while len(node.users) == 1:
        follower = next(iter(node.users))
        module = modules[str(follower.target)] if follower.op == "call_module" else None
        if follower.target in _SUMS:
            others = [value for value in follower.args if value is not node]
            plain = len(follower.args) == 2 and not follower.kwargs and len(others) == 1
            return Residual(others[0], norm) if plain and isinstance(others[0], fx.Node) else None
        if isinstance(module, _BatchNorm) and norm is None:
            norm = follower
        elif not isinstance(module, (_DropoutNd, nn.Identity)) and follower.target not in _DROPOUTS:
            return None
        node = follower
    return None

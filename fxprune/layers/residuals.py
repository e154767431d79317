"""Residual connections: what is added to the output of a layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from fxprune.ops import Trait, traits

__all__ = ["other_side"]


def other_side(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """What is added to a node's output, if the output goes nowhere else in eval; else None.

    Args:
        node: of a traced model.
        modules: the model's, by name.
    """
    while len(node.users) == 1:
        follower = next(iter(node.users))
        module = modules[str(follower.target)] if follower.op == "call_module" else None
        if Trait.ADDITION in traits(follower, module):
            others = [value for value in follower.args if value is not node]
            plain = len(follower.args) == 2 and not follower.kwargs and len(others) == 1
            if not plain or not isinstance(others[0], fx.Node):
                return None
            if others[0].op != "get_attr":
                return others[0]
            # A bias, after which the sum goes on.
            node = follower
            continue
        # In eval dropout does nothing.
        if not isinstance(module, nn.Identity) and (module is None or Trait.DROPOUT not in traits(follower, module)):
            return None
        node = follower
    return None

"""Run one node of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import fx, nn

__all__ = ["run_node", "with_values"]


def run_node(node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: nn.Module | None = None) -> Any:
    """What a node that calls something gives for these arguments, which take the place of its own.

    Args:
        node: a node that calls a module, a function or a method.
        args: positional arguments.
        kwargs: keyword arguments.
        module: the module to call; needed where the node calls one.
    """
    if node.op == "call_module":
        return cast(nn.Module, module)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return cast(Callable[..., Any], node.target)(*args, **kwargs)


def with_values(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments and keyword arguments, with the values of the nodes among them."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    return args, kwargs

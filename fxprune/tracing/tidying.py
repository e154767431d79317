"""What is recorded and of no use is taken out of the graph again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from fxprune.tracing.library_modules import is_library_module
from fxprune.tracing.recording import Recorder
from fxprune.tracing.traced_module import ApplyFunction, ByMode

__all__ = ["remove_dead_nodes"]

# Notes on nodes that do something else than to give a value.
_STAYS = frozenset({"mutates", "random", "check"})


def remove_dead_nodes(recorded: Recorder) -> None:
    """Removes what nobody uses, unless it changes something: a tensor, a module's state, the random numbers."""
    for node in reversed(recorded.graph.nodes):
        if node.users or node.op in ("placeholder", "output") or node.meta.keys() & _STAYS:
            continue
        if node.op == "call_module" and not _is_pure(recorded, cast(str, node.target)):
            continue
        if node.target is torch._C._set_grad_enabled:
            continue
        recorded.graph.erase_node(node)
    for node in recorded.graph.nodes:
        node.meta.pop("random", None)
        node.meta.pop("check", None)
        if node.kwargs and inspect.isfunction(node.target) and node.target.__module__.startswith("torch."):
            # Functions of torch that are written in Python pass all their arguments on; keep those that say something.
            defaults = _defaults(node.target)
            node.kwargs = {
                name: value
                for name, value in node.kwargs.items()
                if name != "_stacklevel" and not (name in defaults and _is_default(value, defaults[name]))
            }


@functools.cache
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and isinstance(value, (int, float)) and value == default)


def _is_pure(recorded: Recorder, path: str) -> bool:
    module = recorded.functions[path] if path in recorded.functions else recorded.root.get_submodule(path)
    if isinstance(module, ByMode):
        return True
    stateful = any(True for _ in module.buffers()) or isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
    return is_library_module(module) and not stateful and not isinstance(module, ApplyFunction)

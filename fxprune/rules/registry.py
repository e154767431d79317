"""The table of op rules.

A rule keeps together what an op does to channel ids (*propagate*), what it costs (*flops*) and how its node changes
when channels go (*rewrite*). The three functions take the arguments of the op itself, so Python binds them:

    @rule("flatten", nn.Flatten)
    def flatten(op, x, start_dim=0, end_dim=-1): ...

In *propagate* and *flops* a tensor argument is its `Labels`, and every other argument its value. In *rewrite* arguments
are the nodes and literals of the graph that is rewritten.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.channels.polynomial import Term
from fxprune.ops import name_of_op
from fxprune.rules.rewrite import Call

__all__ = ["Rule", "find_rule", "rule"]

P = TypeVar("P", bound=Callable[..., Any])


class Rule(Generic[P]):
    """What an op does to ids, what it costs and how it is rewritten."""

    def __init__(self, propagate: P) -> None:
        self.propagate = propagate
        self.flops_of: Callable[..., list[Term]] | None = None
        self.rewrite_of: Callable[..., Call | None] | None = None
        self.__doc__ = propagate.__doc__

    def flops(self, function: Callable[..., list[Term]]) -> Callable[..., list[Term]]:
        """Register what the op costs: `function(op, out, *args)` returns the terms of the polynomial."""
        self.flops_of = function
        return function

    def rewrite(self, function: Callable[..., Call | None]) -> Callable[..., Call | None]:
        """Register how the node changes: `function(op, *args)` returns the new call, or None to leave the node."""
        self.rewrite_of = function
        return function

    def misfit(self, *args: Any, **kwargs: Any) -> str:
        """Why arguments do not fit the parameters of `propagate`; empty where they fit."""
        try:
            inspect.signature(self.propagate).bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return ""


_RULES: dict[Any, Rule[Any]] = {}
_NAMESPACES = (torch, F, operator, torch.linalg, torch.special, torch.Tensor)


def rule(*targets: Any) -> Callable[[P], Rule[P]]:
    """Register a rule for functions, module classes and names.

    A name (see `fxprune.ops`) stands for the tensor method and for the functions of that name in torch,
    torch.nn.functional and operator, in all spellings; "library.name" stands for that operator in `torch.ops`, whether
    the library is installed or not.
    """

    def register(propagate: P) -> Rule[P]:
        made = Rule(propagate)
        for target in targets:
            _RULES.update(dict.fromkeys(_keys(target), made))
        return made

    return register


def _keys(target: Any) -> Iterator[Any]:
    yield target
    if isinstance(target, str):
        yield name_of_op(target)
        for spelling in (target, f"{target}_", f"__{target}__"):
            yield from filter(callable, (getattr(space, spelling, None) for space in _NAMESPACES))


def find_rule(node: fx.Node, module: nn.Module | None, overridden: bool = False) -> Rule[Any] | None:
    """The rule of a node, None where there is none.

    Args:
        node: a node of a traced model.
        module: the module that it calls, if it calls one. A subclass of a known module has the rule of its base as long
            as it does not override `forward`.
        overridden: whether a subclass has that rule even if it overrides `forward`.
    """
    if module is not None:
        kind = type(module)
        base = next((base for base in kind.__mro__ if base in _RULES), None)
        same = base is not None and _forward_of(kind) is _forward_of(base)
        return _RULES[base] if base is not None and (same or overridden) else None
    if node.op == "call_method":
        return _RULES.get(name_of_op(node.target))
    if node.op != "call_function":
        return None
    if isinstance(node.target, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        return _RULES.get(node.target) or _RULES.get(str(node.target).removesuffix(".default"))
    return _RULES.get(node.target)


def _forward_of(kind: type) -> Any:
    return getattr(kind, "forward", None)

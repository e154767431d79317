"""The arguments of the traced call, and the checks that another call has the same where the graph depends on it.

Tensors are inputs of the graph, and so are numbers that are given. Anything else is part of what the code did: a mask
that was None, the name of a task, a flag.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fxprune.tracing.checks import check_argument, expected_of
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.signature import placeholder_name

__all__ = ["Arguments", "call_as_given", "insert_argument_checks"]


@dataclass(frozen=True, eq=False)
class Arguments:
    """What a model is called with.

    Attributes:
        signature: of its forward.
        values: of all parameters, by the name of the placeholder.
        given: the placeholders of those that the call gives; the others have their default values.
    """

    signature: inspect.Signature
    values: Mapping[str, Any]
    given: frozenset[str]

    @classmethod
    def of(cls, signature: inspect.Signature, bound: inspect.BoundArguments) -> Arguments:
        """The arguments of a call that has been bound to the signature."""
        target = {name: placeholder_name(parameter) for name, parameter in signature.parameters.items()}
        given = frozenset(target[name] for name in bound.arguments)
        bound.apply_defaults()
        return cls(signature, {target[name]: value for name, value in bound.arguments.items()}, given)

    def parameter(self, target: str) -> inspect.Parameter:
        """The parameter of a placeholder."""
        return self.signature.parameters[target.lstrip("*")]

    def default(self, target: str) -> tuple[Any, ...]:
        """The arguments of a placeholder: its default value, if it has one."""
        default = self.parameter(target).default
        return () if default is inspect.Parameter.empty else (default,)


def insert_argument_checks(builder: GraphBuilder, arguments: Arguments, model: nn.Module) -> None:
    """Put checks into the graph for the arguments that its code may have followed.

    Args:
        builder: of the graph, which has its checks of sizes.
        arguments: of the traced call.
        model: the original.
    """
    where = f"`{type(model).__name__}`"
    loaded = _loaded_names(model)
    checks = []
    for position, node in enumerate(node for node in builder.graph.nodes if node.op == "placeholder"):
        target = str(node.target)
        value = arguments.values[target]
        if loaded is not None and target.lstrip("*") not in loaded:
            continue
        if position == 0 and isinstance(value, Tensor):
            # Without it the graph fails.
            continue
        expected = expected_of(value, is_computed_with=bool(node.users))
        if node in builder.ordered:
            expected = ("ordered", *expected[1:])
        checks.append((node, expected, target.lstrip("*"), where))
    first = next(node for node in builder.graph.nodes if node.op != "placeholder")
    with builder.graph.inserting_before(first):
        for check in checks:
            builder.create_check(check_argument, check)


def _loaded_names(model: nn.Module) -> set[str] | None:
    """The variables that the code of a model's forward reads; None if other code may see its arguments too."""
    forward = model.forward
    code = getattr(getattr(forward, "__func__", forward), "__code__", None)
    if code is None or hasattr(forward, "__wrapped__") or model._forward_pre_hooks or model._forward_hooks:
        return None
    if {"locals", "vars", "eval", "exec"} & {*code.co_names}:
        return None
    names = {*code.co_cellvars}
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith("LOAD_") or "LOAD_FAST" in instruction.opname:
            # Python 3.13 reads two variables at once.
            names.update(instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,))
    return {name for name in names if isinstance(name, str)}


def call_as_given(
    given: dict[str, Any], signature: inspect.Signature, *, hooked: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Placeholders to the arguments of the call, which are by name unless that is impossible, or hooks see them."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    variadic = any(target.startswith("*") and not target.startswith("**") for target in given)
    for (target, value), parameter in zip(given.items(), signature.parameters, strict=False):
        if target.startswith("**"):
            named.update(value)
        elif target.startswith("*"):
            positional.extend(value)
        else:
            kind = signature.parameters[target].kind
            by_place = variadic or (hooked and target == parameter and not named)
            if kind is kind.POSITIONAL_ONLY or (by_place and kind is kind.POSITIONAL_OR_KEYWORD):
                positional.append(value)
            else:
                named[target] = value
    return positional, named

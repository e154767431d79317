"""The signature of a traced model's `forward`: that of the original, with all its parameters in their order."""

from __future__ import annotations

import inspect
import math
import sys
from types import FrameType
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen

from fxprune.errors import FxpruneError

__all__ = ["SignatureCodeGen", "placeholder_name", "signature_of"]

# In generated code, what holds the default values that cannot be written as literals.
_DEFAULTS = "_defaults"
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def placeholder_name(parameter: inspect.Parameter) -> str:
    """The target of the placeholder that stands for a parameter."""
    return _STARS.get(parameter.kind, "") + parameter.name


def signature_of(graph: fx.Graph) -> inspect.Signature | None:
    """The signature that a graph has been given; None if it has only its placeholders."""
    codegen = graph._codegen
    return codegen.signature if isinstance(codegen, SignatureCodeGen) else None


class _Values:
    """Values as attributes; hashable, as torch wants what generated code refers to."""

    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)


class SignatureCodeGen(CodeGen):
    """Generates a `forward` with a given signature: placeholders know no parameters that are keyword-only.

    Attributes:
        signature: without annotations.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        super().__init__()
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        self.signature = inspect.Signature(plain)

    def __deepcopy__(self, memo: dict[int, Any]) -> SignatureCodeGen:
        return SignatureCodeGen(self.signature)

    def gen_fn_def(self, free_vars: list[str], *args: Any, **kwargs: Any) -> str:
        """The head of the function; the usual one where somebody has changed the placeholders."""
        names = [text.split(":")[0].split("=")[0].strip() for text in free_vars]
        parameters = self.signature.parameters
        if names == [placeholder_name(parameter) for parameter in parameters.values()]:
            free_vars = _spelled([*parameters.values()])
        head: str = super().gen_fn_def(free_vars, *args, **kwargs)
        return head

    def additional_globals(self) -> list[tuple[str, Any]]:
        """The default values that cannot be written as literals."""
        parameters = self.signature.parameters.values()
        values = {
            each.name: each.default for each in parameters if _has_default(each) and not _is_literal(each.default)
        }
        return [(_DEFAULTS, _Values(values))] if values else []

    def process_inputs(self, *args: Any) -> Any:
        """What `fx.Interpreter` gives the placeholders.

        `torch.export` runs a GraphModule by an Interpreter, with the values of keyword arguments after the positional
        ones, in the order of the call. The names are found in its frame.
        """
        kwargs = _keywords_of_export(sys._getframe(1))
        if not kwargs:
            return args
        bound = self.signature.bind(*args[: len(args) - len(kwargs)], **kwargs)
        bound.apply_defaults()
        values: list[Any] = []
        kinds = [parameter.kind for parameter in self.signature.parameters.values()]
        for kind, value in zip(kinds, bound.arguments.values(), strict=True):
            if kind is inspect.Parameter.VAR_KEYWORD:
                if value:
                    raise FxpruneError(
                        f"torch.export cannot take {', '.join(value)}, which forward takes as **keywords: "
                        "export the model without them"
                    )
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                if value or inspect.Parameter.KEYWORD_ONLY in kinds:
                    raise FxpruneError("torch.export cannot take keyword arguments beside *arguments of forward")
            else:
                values.append(value)
        return tuple(values)


def _keywords_of_export(frame: FrameType | None) -> dict[str, Any]:
    """The keyword arguments of the call that `torch.export` makes, from a frame that it has called."""
    while frame is not None and frame.f_globals.get("__name__") in ("torch.fx.graph", "torch.fx.interpreter"):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") != "torch.export._trace":
        return {}
    found = frame.f_locals.get("kwargs")
    return found if isinstance(found, dict) else {}


def _spelled(parameters: list[inspect.Parameter]) -> list[str]:
    """Parameters as they are written in the head of a function, with the marks between them."""
    parts: list[str] = []
    before: Any = None
    for parameter in parameters:
        kind = parameter.kind
        if before is parameter.POSITIONAL_ONLY and kind is not before:
            parts.append("/")
        if kind is parameter.KEYWORD_ONLY and before not in (parameter.VAR_POSITIONAL, kind):
            parts.append("*")
        default = ""
        if _has_default(parameter):
            literal = _is_literal(parameter.default)
            default = f" = {parameter.default!r}" if literal else f" = {_DEFAULTS}.{parameter.name}"
        parts.append(f"{placeholder_name(parameter)}{default}")
        before = kind
    return [*parts, "/"] if before is inspect.Parameter.POSITIONAL_ONLY else parts


def _has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty


def _is_literal(value: Any) -> bool:
    finite = type(value) is float and math.isfinite(value)
    return value is None or finite or type(value) in (bool, int, str)

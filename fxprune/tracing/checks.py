"""The check in a graph that a size is the traced one, where the model's code followed it."""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxprune.errors import FxpruneError
from fxprune.tracing.sizes import TracedNumber, plain

__all__ = ["check_as_traced", "check_setting"]


@fx.node.has_side_effect
def check_as_traced(value: Any, traced: Any, what: str, where: str) -> None:
    """Check that a number computed from sizes, or the outcome of a comparison, is the one of the trace.

    Args:
        value: what it is now.
        traced: what it was in the trace.
        what: how it is computed, for the message.
        where: the module whose code follows it, for the message.

    Raises:
        FxpruneError: it has changed.
    """
    if isinstance(value, TracedNumber):
        # A traced graph that is traced again.
        value.nodes.guard(operator.pos, (value,), traced)
        value = plain(value)
    if isinstance(value, Tensor):
        value = _item(value)
    if isinstance(value, torch.SymInt) and free_unbacked_symbols(value):
        # A number from a tensor in `torch.export`, whose program gets the check.
        torch._check(value == traced)
        return
    # A size may be symbolic, and comparing its truth with True fails then.
    if (not value if traced else value) if isinstance(traced, bool) else value != traced:
        now = bool(value) if isinstance(traced, bool) else value
        raise FxpruneError(
            f"`{what}` is {now} here, and was {traced} when the model was traced. The code of {where} follows it in "
            "a loop or a branch, and the graph has what the code did then. Trace or prune the model with an example of "
            "this size, or write that code with operations on whole tensors"
        )


@fx.node.has_side_effect
def check_setting(value: Any, traced: Any, what: str, where: str) -> None:
    """Check that a setting of torch, such as autocast, is the one of the trace.

    Args:
        value: what it is now.
        traced: what it was in the trace.
        what: how it is read, for the message.
        where: the module whose code follows it, for the message.

    Raises:
        FxpruneError: it has changed.
    """
    if value != traced:
        raise FxpruneError(
            f"`{what}` is {value} here, and was {traced} when the model was traced. The code of {where} follows it, "
            "and the graph has what the code did then. Trace or prune the model in the context that it runs in"
        )


def _item(size: Tensor) -> Any:
    """The number in a tensor; sizes are tensors while torch.jit traces, and it warns where one becomes a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return size.item()

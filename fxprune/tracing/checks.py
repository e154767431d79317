"""The check that a graph makes where its code followed a size."""

from __future__ import annotations

import operator
import warnings
from typing import Any

from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.tracing.sizes import TracedNumber, plain

__all__ = ["check_as_traced"]


@fx.node.has_side_effect
def check_as_traced(value: Any, traced: Any, what: str, where: str) -> None:
    """Stop where a size, or what a comparison of sizes gives, is another than in the trace.

    Raises:
        FxpruneError: it is another.
    """
    if isinstance(value, TracedNumber):
        # A traced graph that is traced again.
        value.nodes.guard(operator.pos, (value,), traced)
        value = plain(value)
    if isinstance(value, Tensor):
        value = _looked_at(value)
    if isinstance(traced, bool):
        value = bool(value)
    if value != traced:
        raise FxpruneError(
            f"`{what}` is {value} here, and was {traced} when the model was traced. The code of {where} follows it in "
            "a loop or a branch, which the graph has as it was then. Trace or prune the model with an example of this "
            "size, or write that code with operations on whole tensors"
        )


def _looked_at(size: Tensor) -> Any:
    """A number that torch.jit has as a tensor while it traces; it warns of each that is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return size.item()

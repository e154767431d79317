"""Autograd Functions whose `backward` is what autograd would do, such as a layer norm written to save memory.

The graph may have what their `forward` computes, of which the rules know what it does to channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fxprune.ops import Trait, name_of_op, names_with
from fxprune.running.eager import run_forward

__all__ = ["has_gradients_of_autograd"]

# Beside ops that fvcore counts as nothing: it does not look into a Function, and the graph must cost the same.
_FREE = frozenset(
    name
    for trait in (Trait.ELEMENTWISE, Trait.VIEW, Trait.REDUCTION, Trait.COPY, Trait.LAYOUT)
    for name in names_with(trait)
) | {"size", "numel", "get", "zeros_like", "ones_like", "empty_like"}
# Clamps of values and of gradients show where both are large. With more entries the check would take long. Not tuned.
_SCALES, _MOST_ENTRIES = (1.0, 1000.0), 10_000_000
_SAME = 1e-9


def has_gradients_of_autograd(function: type[torch.autograd.Function], args: tuple[Any, ...]) -> bool:
    """Whether a Function of several tensors gives what its `forward` does, with the gradients that autograd finds.

    It is tried with random numbers in float64. Functions of one tensor are left alone: most act on each channel alone.

    Args:
        function: its `forward` may have free ops alone.
        args: of a call; the tensors may be on the meta device.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if _is_decorated(function.forward):
        # `torch.amp.custom_fwd` sets another precision.
        return False
    if len(tensors) < 2 or not all(tensor.is_floating_point() for tensor in tensors):
        return False
    if sum(tensor.numel() for tensor in tensors) > _MOST_ENTRIES or any(isinstance(arg, (tuple, list)) for arg in args):
        return False
    try:
        with torch.enable_grad():
            return all(_agrees(function, args, scale) for scale in _SCALES)
    except Exception:
        # It does not take float64, or autograd cannot follow what it writes into.
        return False


def _is_decorated(forward: Any) -> bool:
    """Whether a function has a decorator, beside that which it has while fxprune traces."""
    while hasattr(forward, "__wrapped__"):
        if not forward.__globals__["__name__"].startswith("fxprune."):
            return True
        forward = forward.__wrapped__
    return False


def _agrees(function: type[torch.autograd.Function], args: tuple[Any, ...], scale: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(arg.shape, generator=generator, dtype=torch.float64, device="cpu") * scale
        if isinstance(arg, Tensor)
        else arg
        for arg in args
    ]
    used = _Ops()

    def forward(*given: Any) -> Any:
        with used:
            return run_forward(function, given)

    own, expected = (_with_gradients(call, drawn, scale) for call in (forward, function.apply))
    return used.names <= _FREE and len(own) == len(expected) and all(map(_same, expected, own))


def _with_gradients(call: Callable[..., Any], drawn: list[Any], scale: float) -> list[Tensor | None]:
    """The output of a call and its gradients by each tensor."""
    given = [arg.clone().requires_grad_() if isinstance(arg, Tensor) else arg for arg in drawn]
    output: Tensor = call(*given)
    along = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype) * scale
    leaves = [arg for arg in given if isinstance(arg, Tensor)]
    return [output.detach(), *torch.autograd.grad(output, leaves, along, allow_unused=True)]


def _same(expected: Tensor | None, got: Tensor | None) -> bool:
    if expected is None or got is None:
        return expected is got
    close = expected.shape == got.shape and (expected - got).abs().max() <= _SAME * expected.abs().max()
    return bool(close)


class _Ops(TorchFunctionMode):
    """Notes the names of the ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(name_of_op(func))
        return func(*args, **(kwargs or {}))

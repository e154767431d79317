"""Code that torch runs in a way that no tracer sees into, run as what it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import CheckpointFunction

from fxprune.running.trees import leaves

__all__ = ["run_forward", "running_eagerly", "runs_modules", "source_of_scripted"]


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Within it, checkpoints of the reentrant kind and what `torch.compile` made run the code that they were given.

    So does each autograd.Function that is given modules to run, as reversible networks have it.
    """
    original = vars(torch.autograd.Function)["apply"]

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and runs_modules(args):
            return run_forward(function, args)
        return original.__get__(None, function)(*args, **kwargs)

    with ExitStack() as stack:
        before = vars(CheckpointFunction).get("apply")
        stack.callback(_restore_apply, before)
        CheckpointFunction.apply = lambda run, preserve_rng_state, *args: run(*args)
        stack.callback(setattr, torch.autograd.Function, "apply", original)
        torch.autograd.Function.apply = classmethod(apply)
        # Nothing was compiled before it is loaded.
        dynamo: Any = sys.modules.get("torch._dynamo")
        if dynamo is not None:
            eager = getattr(dynamo.eval_frame, "_use_eager_on_nested_compile", None)
            if eager is not None:
                stack.enter_context(eager())
            else:
                # In older versions they do so while torch.fx traces, if told that this is no error.
                stack.enter_context(dynamo.config.patch(error_on_nested_fx_trace=False))
                symbolic: Any = torch.fx._symbolic_trace
                stack.callback(setattr, symbolic, "_is_fx_tracing_flag", symbolic._is_fx_tracing_flag)
                symbolic._is_fx_tracing_flag = True
        yield


def _restore_apply(before: Any) -> None:
    if before is None:
        del CheckpointFunction.apply
    else:
        CheckpointFunction.apply = before


def source_of_scripted(function: Any) -> Any:
    """The Python function that a scripted one was made of, or None."""
    return getattr(function, "_torchdynamo_inline", None)


def runs_modules(args: tuple[Any, ...]) -> bool:
    """Whether an autograd.Function is given modules, or functions and objects that have modules at hand."""
    return any(isinstance(leaf, nn.Module) or _has_modules(leaf) for leaf in leaves(args))


def _has_modules(value: Any) -> bool:
    if isinstance(value, (Tensor, type)):
        return False
    held = [getattr(value, "__self__", None), *getattr(value, "__dict__", {}).values()]
    for cell in getattr(value, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            held.append(cell.cell_contents)
    return any(isinstance(leaf, nn.Module) for leaf in leaves(held))


class _Context(FunctionCtx):
    """What `forward` notes for a `backward` that is not called."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(arg, Tensor) and arg.is_floating_point() for arg in args)


def run_forward(function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
    """What the function's `forward` computes."""
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args)
    return function.forward(_Context(args), *args)

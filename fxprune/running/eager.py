"""Code that torch runs where no tracer can look into it, run as the Python code that it was made of."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
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
    """Within it, three kinds of code run as the Python code that they were made of, in every thread.

    They are reentrant checkpoints, whatever `torch.compile` made, and each autograd.Function that gets modules to run,
    as in reversible networks.
    """
    original = vars(torch.autograd.Function)["apply"]

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and runs_modules(args):
            return run_forward(function, args)
        return original.__get__(None, function)(*args, **kwargs)

    with ExitStack() as stack:
        stack.callback(_restore_apply, vars(CheckpointFunction).get("apply"))
        CheckpointFunction.apply = lambda run, preserve_rng_state, *args: run(*args)
        stack.callback(setattr, torch.autograd.Function, "apply", original)
        torch.autograd.Function.apply = classmethod(apply)
        # As long as Dynamo is not loaded, nothing is compiled.
        dynamo: Any = sys.modules.get("torch._dynamo")
        if dynamo is not None:
            eager = getattr(dynamo.eval_frame, "_use_eager_on_nested_compile", None)
            if eager is not None:
                stack.enter_context(eager())
            else:
                # Older versions run it eagerly while torch.fx traces, unless that counts as an error.
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


def source_of_scripted(function: object) -> Callable[..., Any] | None:
    """The Python function that a scripted one was made of, or None."""
    return getattr(function, "_torchdynamo_inline", None)


def runs_modules(args: tuple[Any, ...]) -> bool:
    """Whether the arguments of an autograd.Function are, or hold, modules: as functions and objects can."""
    return any(isinstance(leaf, nn.Module) or _holds_modules(leaf) for leaf in leaves(args))


def _holds_modules(value: object) -> bool:
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
    # Without what may record its calls.
    forward = inspect.unwrap(function.forward)
    if function.setup_context is not torch.autograd.Function.setup_context:
        return forward(*args)
    return forward(_Context(args), *args)

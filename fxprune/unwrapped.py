"""Code that torch runs in a way that no tracer sees into, run as what it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

__all__ = ["unwrapped"]


@contextmanager
def unwrapped() -> Iterator[None]:
    """Within it, checkpoints of the reentrant kind and what `torch.compile` made run the code that they were given."""
    with ExitStack() as stack:
        before = vars(CheckpointFunction).get("apply")
        stack.callback(_restore_apply, before)
        CheckpointFunction.apply = lambda run, preserve_rng_state, *args: run(*args)
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

"""Torch's `flex_attention`, and functions mapped by `torch.vmap`, where torch.jit's tracer counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch._functorch import apis
from torch.overrides import TorchFunctionMode

from fxprune.running import trees

__all__ = ["flex_attention_traced"]

_NOT_COMPILED = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@contextmanager
def flex_attention_traced() -> Iterator[None]:
    """Within it, torch.jit's tracer sees the fused op in place of each `flex_attention`, and nothing of `torch.vmap`.

    Raises:
        RuntimeError: a function that is mapped gives no mask, and may compute products, which would be missed.
    """
    # Imported here, since that takes almost a second.
    from torch.nn.attention import flex_attention

    mapping: Any = apis
    attention: Any = flex_attention
    vmap, compiled = mapping.vmap_impl, getattr(attention, _NOT_COMPILED, False)

    def mapped(*args: Any, **kwargs: Any) -> Any:
        traced = torch._C._get_tracing_state() is not None
        with _untraced():
            result = vmap(*args, **kwargs)
        if traced and any(tensor.is_floating_point() for tensor in trees.tensors(result)):
            raise RuntimeError("what a function computes that `torch.vmap` maps cannot be counted")
        return result

    try:
        mapping.vmap_impl = mapped
        setattr(attention, _NOT_COMPILED, True)
        with _Fused(attention.flex_attention_hop):
            yield
    finally:
        mapping.vmap_impl = vmap
        setattr(attention, _NOT_COMPILED, compiled)


class _Fused(TorchFunctionMode):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self._attention = attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not self._attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]
        with _untraced():
            _, *further = func(*args, **(kwargs or {}))
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1]), *further


@contextmanager
def _untraced() -> Iterator[None]:
    state = torch._C._get_tracing_state()
    try:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]

"""Regions without gradients: `torch.no_grad()` and its like, as nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fxprune.tracing.graph_builder import GraphBuilder, Origin

__all__ = ["GradRegions"]

# While a model is traced, torch has another function of this name.
_IS_GRAD_ENABLED = torch.is_grad_enabled


class GradRegions:
    """Records where the model's code turns gradients off and on again."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._inlined = 0
        # What saved the mode, what set it, and how many nodes a gradient could pass through then.
        self._region: tuple[fx.Node, fx.Node, int] | None = None

    @property
    def inlined(self) -> bool:
        """Whether the `forward` of an autograd.Function is being recorded as what it computes."""
        return self._inlined > 0

    @contextmanager
    def inlining(self) -> Iterator[None]:
        """Inside, an autograd.Function is recorded as what it computes, and autograd sees all of it."""
        before = torch.is_grad_enabled()
        self._inlined += 1
        try:
            yield
        finally:
            self._inlined -= 1
            torch._C._set_grad_enabled(before)

    def set_enabled(self, func: Callable[[bool], Any], enabled: bool) -> None:
        """Record `func(enabled)`; a region goes again where nothing in it could have a gradient."""
        before = torch.is_grad_enabled()
        func(enabled)
        if enabled == before or self._inlined:
            return
        create = self._builder.create_node
        if self._region is None:
            saved = create("call_function", _IS_GRAD_ENABLED, (), {}, before, Origin.INPUTS)
            start = create("call_function", func, (enabled,), {}, None, Origin.INPUTS)
            self._region = saved, start, self._builder.differentiable
            return
        saved, start, count = self._region
        self._region = None
        if self._builder.differentiable > count:
            create("call_function", func, (saved,), {}, None, Origin.INPUTS)
        else:
            self._builder.graph.erase_node(start)
            self._builder.graph.erase_node(saved)

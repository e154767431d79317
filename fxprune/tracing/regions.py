"""Regions of the model's code in which a setting of torch differs, as nodes of the graph: see `running.regions`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxprune.errors import FxpruneError
from fxprune.running.regions import enter_region, exit_region, region
from fxprune.tracing.checks import check_setting, check_state
from fxprune.tracing.graph_builder import GraphBuilder, Origin
from fxprune.tracing.lowering import Lowering

__all__ = ["Regions"]


@dataclass
class _Region:
    """A region that has not ended.

    Attributes:
        owner: the context manager; None for `torch.set_grad_enabled(...)`, called as a function.
        nodes: those that start it; none where it changes nothing.
        work: how many nodes there were that it could have changed.
        enabled: whether gradients are, for a region that is about them.
        before: whether they were before it.
        told: what the model has been told of that, if it asked.
    """

    owner: Any
    nodes: list[fx.Node]
    work: int
    enabled: bool | None
    before: bool
    told: bool | None = None


class Regions:
    """Records where the model's code enters and leaves contexts."""

    def __init__(self, builder: GraphBuilder, lowering: Lowering) -> None:
        self._builder = builder
        self._lowering = lowering
        self._inlined = 0
        self._open: list[_Region] = []
        # The device that the model's code has read last.
        self._device: torch.device | None = None

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

    @contextmanager
    def without_grad(self) -> Iterator[None]:
        """The node that is made inside computes no gradients."""
        made = self._create(region, ("grad", False))
        self._create(enter_region, (made,))
        yield
        self._create(exit_region, (made,))

    def enter(self, owner: Any, kind: str, *args: Any, **kwargs: Any) -> None:
        """The context manager `owner`, which is `region(kind, *args, **kwargs)`, has been entered."""
        enabled = args[0] if kind == "grad" else not args[0] if kind == "inference_mode" else None
        last = self._open[-1] if self._open else None
        if last is not None and last.owner is None and isinstance(owner, torch.set_grad_enabled):
            # Its constructor has set the mode already.
            last.owner = owner
        elif kind == "grad" and (self.inlined or enabled == self._innermost_grad()):
            self._open.append(_Region(owner, [], 0, enabled, torch.is_grad_enabled()))
        else:
            self._start(owner, kind, args, kwargs, enabled)

    def exit(self, owner: Any) -> None:
        """The context manager `owner` has been left."""
        if any(each.owner is owner for each in self._open):
            while self._open[-1].owner is not owner:
                self._leave_open(self._open.pop())
            self._end(self._open.pop())

    def set_grad(self, enabled: bool, told: bool | None) -> None:
        """`torch.set_grad_enabled(enabled)`: what puts back the mode from before is the end of a region.

        Args:
            enabled: the mode.
            told: the mode that the model has been told, where that is not the one in force.
        """
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(enabled)
        if self.inlined:
            return
        last = self._open[-1] if self._open else None
        if last is not None and last.owner is None and enabled == (last.before if last.told is None else last.told):
            torch._C._set_grad_enabled(last.before)
            self._end(self._open.pop())
        elif enabled != before:
            self._start(None, "grad", (enabled,), {}, enabled, before, told)

    def finish(self) -> None:
        """The run has ended; a mode of gradients that the code has set stays set."""
        while self._open:
            self._leave_open(self._open.pop())

    def note_device(self, device: torch.device) -> None:
        """The model's code has read a device from a tensor."""
        self._device = device

    def device_of(self, name: str) -> Any:
        """The type of a device where the code names it, and the device of a tensor where the code read it there."""
        # Python keeps one object for all strings of that text that are written in code; `x.device.type` gives another.
        named = sys.intern(str(name)) is name
        return name if named or self._device is None or self._device.type != name else self._device

    def check_setting(self, function: Callable[..., Any], args: tuple[Any, ...], value: Any) -> None:
        """From here on the graph relies on `function(*args)`, which reads a setting of torch, being `value`."""
        read = self._create(function, args)
        path, _ = self._builder.scopes.current
        what = f"torch.{function.__name__}({', '.join(map(repr, args))})"
        self._create(check_setting, (read, value, what, f"`{path or type(self._builder.root).__name__}`"))

    def check_state(self, function: Callable[..., Any], value: Any) -> None:
        """As `check_setting`, of what torch.compile cannot ask for."""
        path, _ = self._builder.scopes.current
        name, where = function.__name__, f"`{path or type(self._builder.root).__name__}`"
        self._create(check_state, (name, value, f"torch.{name}()", where))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A function that changes a setting of torch for all that follows."""
        with torch._C.DisableTorchFunction():
            lowered = self._lowering.lower_call(args, kwargs)
        self._create(function, lowered.args, lowered.kwargs)

    def _innermost_grad(self) -> bool | None:
        return next((each.enabled for each in reversed(self._open) if each.enabled is not None), None)

    def _start(
        self, owner: Any, kind: str, args: Any, kwargs: dict[str, Any], enabled: Any, before: bool = True,
        told: bool | None = None,
    ) -> None:  # fmt: skip
        with torch._C.DisableTorchFunction():
            lowered = self._lowering.lower_call(args, kwargs)
        made = self._create(region, (kind, *lowered.args), lowered.kwargs)
        entered = self._create(enter_region, (made,))
        self._open.append(_Region(owner, [made, entered], self._work(enabled), enabled, before, told))

    def _end(self, ended: _Region) -> None:
        """The end of a region, which goes again where there is nothing in it that it could have changed."""
        if not ended.nodes:
            return
        if self._work(ended.enabled) > ended.work:
            self._create(exit_region, (ended.nodes[0],))
        else:
            for node in reversed(ended.nodes):
                self._builder.graph.erase_node(node)

    def _leave_open(self, left: _Region) -> None:
        if left.owner is not None:
            raise FxpruneError(
                f"forward enters {type(left.owner).__name__}(...) and does not leave it: use it in a `with` statement"
            )
        made, entered = left.nodes
        entered.target, entered.args = torch._C._set_grad_enabled, (left.enabled,)
        self._builder.graph.erase_node(made)

    def _work(self, enabled: bool | None) -> int:
        """How many nodes there are that a region can change: those with a gradient, or any."""
        return len(self._builder.graph.nodes) if enabled is None else self._builder.differentiable

    def _create(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        # No gradient passes through them.
        node = self._builder.create_node("call_function", function, args, kwargs or {}, None, Origin.CONSTANTS)
        node.meta["check"] = True
        return node

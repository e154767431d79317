"""Regions of a graph in which a setting of torch differs, as inside `torch.autocast(...)` or `torch.no_grad()`.

A region is three nodes: `region` makes the context manager, `enter_region` enters it and `exit_region` leaves it. In
the code of a graph, the nodes between the latter two are the body of a `with`, so that an error inside leaves the
region too. What runs a graph node by node does so inside `leaving_regions`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx
from torch.backends import cudnn, mkldnn, opt_einsum
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "GENERATORS", "enter_region", "exit_region", "has_region_blocks", "is_boundary", "leaving_regions", "region",
    "regions_around", "with_region_blocks",
]  # fmt: skip


def _autocast(device: Any, dtype: Any, enabled: bool, cache_enabled: Any) -> Any:
    device = device if isinstance(device, str) else device.type
    if not (enabled or torch.compiler.is_dynamo_compiling() or torch.is_autocast_enabled(device)):
        # It would change nothing, and programs of `torch.export` would have it all the same.
        return nullcontext()
    return torch.autocast(device, dtype, enabled, cache_enabled)


def _sdpa_kernel(backends: Any, set_priority: bool = False) -> Any:
    chosen = [getattr(SDPBackend, name) for name in backends]
    return sdpa_kernel(chosen, set_priority) if set_priority else sdpa_kernel(chosen)


def _grad(enabled: bool) -> Any:
    return torch.enable_grad() if enabled else torch.no_grad()


# Context managers of torch that are generators, by name; all but `sdpa_kernel` take plain values.
_BY_NAME: dict[str, Callable[..., Any]] = {
    "sdpa_kernel": sdpa_kernel, "sdp_kernel": torch.backends.cuda.sdp_kernel, "cudnn.flags": cudnn.flags,
    "mkldnn.flags": mkldnn.flags, "opt_einsum.flags": opt_einsum.flags, "fork_rng": torch.random.fork_rng,
}  # fmt: skip
#: The name of the context manager for each generator function behind one.
GENERATORS: dict[Any, str] = {
    function.__wrapped__: name for name, function in _BY_NAME.items() if hasattr(function, "__wrapped__")
}
_MAKERS: dict[str, Callable[..., Any]] = {
    **_BY_NAME, "sdpa_kernel": _sdpa_kernel, "autocast": _autocast, "grad": _grad,
    "inference_mode": torch.inference_mode,
}  # fmt: skip


def region(kind: str, *args: Any, **kwargs: Any) -> Any:
    """A context manager by its name, with plain arguments: `region("grad", False)` is `torch.no_grad()`."""
    return _MAKERS[kind](*args, **kwargs)


class _Open(threading.local):
    def __init__(self) -> None:
        self.managers: list[Any] = []


_open = _Open()


@fx.node.has_side_effect
def enter_region(manager: Any) -> None:
    """Enter a context manager."""
    manager.__enter__()
    _open.managers.append(manager)


@fx.node.has_side_effect
def exit_region(manager: Any) -> None:
    """Leave the context manager that was entered last."""
    _open.managers.remove(manager)
    manager.__exit__(None, None, None)


def is_boundary(node: fx.Node) -> bool:
    """Whether a node starts or ends a region."""
    return node.target in (region, enter_region, exit_region)


def regions_around(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """The `region` nodes of the regions that each node is in, the outermost first."""
    around: dict[fx.Node, tuple[fx.Node, ...]] = {}
    inside: tuple[Any, ...] = ()
    for node in graph.nodes:
        if node.target is exit_region:
            inside = tuple(each for each in inside if each is not node.args[0])
        around[node] = inside
        if node.target is enter_region:
            inside = (*inside, node.args[0])
    return around


@contextmanager
def leaving_regions() -> Iterator[None]:
    """Regions that are entered inside, by a graph that is run node by node, are left at the end, whatever happens."""
    count = len(_open.managers)
    try:
        yield
    finally:
        while len(_open.managers) > count:
            exit_region(_open.managers[-1])


# --- in the code of a graph -------------------------------------------------------------------------------------------

_ENTER = re.compile(rf"= {__name__.replace('.', '_')}_enter_region\((\w+)\)")
_EXIT = re.compile(rf"= {__name__.replace('.', '_')}_exit_region\((\w+)\)")


def has_region_blocks(graph: fx.Graph) -> bool:
    """Whether a graph has regions that can be `with` blocks of its code."""
    return any(node.target is enter_region for node in graph.nodes) and _nested(graph)


def _nested(graph: fx.Graph) -> bool:
    """Whether each region ends, and inside the one that it starts in."""
    started: list[Any] = []
    for node in graph.nodes:
        if node.target is enter_region:
            started.append(node.args[0])
        elif node.target is exit_region and (not started or started.pop() is not node.args[0]):
            return False
    return not started


def with_region_blocks(body: list[str]) -> list[str]:
    """The lines of the code of a graph with its regions as `with` blocks."""
    lines, depth = [], 0
    for line in "".join(body).splitlines(keepends=True):
        entered, left = _ENTER.search(line), _EXIT.search(line)
        if entered:
            line = f"with {entered.group(1)}:\n"
        elif left:
            # So that no block is empty.
            line = "pass\n"
        lines.append(line if line.startswith("# COUNTER") else "    " * depth + line)
        depth += bool(entered) - bool(left)
    return lines

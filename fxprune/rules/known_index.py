"""Tensors of indices whose values do not depend on the input: buffers, constants, and what is computed of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from fxprune.rules.registry import Op, Rewrite

__all__ = ["computes_indices", "known_index", "places", "renumbered"]

_INDEX_TYPES = (torch.int64, torch.int32)
# Ops that give the same result each time.
_SAME_EACH_TIME = frozenset((
    *("to", "type", "long", "int", "cpu", "cuda", "contiguous", "clone", "detach", "argsort", "flip", "cat", "stack"),
    *("view", "reshape", "flatten", "transpose", "permute", "t", "squeeze", "unsqueeze", "arange", "tensor"),
    *("nonzero", "getitem", "invert", "logical_not", "bool"),
))  # fmt: skip


def known_index(op: Op | Rewrite, index: Any) -> torch.Tensor | None:
    """The values of an index of one dimension, `None` where they are not known before the model runs.

    Args:
        op: the op that is given the index.
        index: the argument as it stands in the graph, a node or a list.
    """
    if isinstance(index, (list, tuple)):
        return torch.tensor(index) if all(type(item) is int for item in index) else None
    if not isinstance(index, fx.Node):
        return None
    with torch.no_grad():
        value = _value(op, index, op.written(op.node.graph.nodes) if isinstance(op, Op) else set())
    if not isinstance(value, torch.Tensor) or value.is_meta or value.ndim != 1 or value.dtype not in _INDEX_TYPES:
        return None
    return value


def _value(op: Op | Rewrite, node: fx.Node, written: set[fx.Node]) -> Any:
    """The value of a node; None where it is not known."""
    value = node.meta["value"]
    if isinstance(value, (torch.device, torch.dtype)) or (isinstance(value, int) and op.is_static(node)):
        return value
    if isinstance(op, Op) and op.root[node] in written:
        return None
    if node.op == "get_attr":
        return dict(node.graph.owning_module.named_buffers(remove_duplicate=False)).get(str(node.target))  # type: ignore[union-attr]
    if not computes_indices(node):
        return None
    values = {given: _value(op, given, written) for given in node.all_input_nodes}
    if any(given is None or (isinstance(given, torch.Tensor) and given.is_meta) for given in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def computes_indices(node: fx.Node) -> bool:
    """Whether the node is a tensor of the model, or calls what gives the same result each time."""
    called = node.op in ("call_function", "call_method")
    return node.op == "get_attr" or (called and getattr(node.target, "__name__", node.target) in _SAME_EACH_TIME)


def places(index: torch.Tensor, size: int) -> npt.NDArray[np.int64]:
    """The indices that are taken of a dimension, none of them negative."""
    taken: npt.NDArray[np.int64] = np.arange(size)[index.cpu().numpy()]
    return taken


def renumbered(op: Rewrite, index: Any, kept: npt.NDArray[np.bool_]) -> Any:
    """The same index among those that are left, a list or a buffer as it was."""
    values = known_index(op, index)
    assert values is not None, f"{op.node}: {index} is not known"
    taken = places(values, len(kept))
    left = (np.cumsum(kept) - 1)[taken[kept[taken]]]
    if isinstance(index, fx.Node):
        return op.insert_buffer("index", torch.from_numpy(left).to(values.device))
    return [int(k) for k in left]

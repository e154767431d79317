"""Tensors of indices that do not depend on the input: buffers, constants, and what is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.fx.node import Argument

from fxprune.ops import Trait, traits
from fxprune.rules.op import Op
from fxprune.rules.rewrite import Rewrite
from fxprune.running.one_node import run_node, with_values

__all__ = ["computes_indices", "known_index", "places", "renumbered"]

_INDEX_TYPES = (torch.int64, torch.int32)


def known_index(op: Op | Rewrite, index: Argument) -> torch.Tensor | None:
    """The values of an index of one dimension; None where they are not known before the model runs.

    Args:
        op: the op that is given the index.
        index: the argument in the graph, a node or a list.
    """
    if isinstance(index, (list, tuple)):
        return torch.tensor(index) if all(type(item) is int for item in index) else None
    if not isinstance(index, fx.Node):
        return None
    with torch.no_grad():
        value = _value(op, index, op.state.written_by(op.node.graph.nodes) if isinstance(op, Op) else set())
    if not isinstance(value, torch.Tensor) or value.is_meta or value.ndim != 1 or value.dtype not in _INDEX_TYPES:
        return None
    return value


def _value(op: Op | Rewrite, node: fx.Node, written: set[fx.Node]) -> Any:
    """The value of a node; None where it is not known, or where the model writes into it."""
    value = node.meta["value"]
    if isinstance(value, (torch.device, torch.dtype)) or (isinstance(value, int) and op.is_static(node)):
        return value
    if isinstance(op, Op) and op.state.roots[node] in written:
        return None
    if node.op == "get_attr":
        return dict(node.graph.owning_module.named_buffers(remove_duplicate=False)).get(str(node.target))  # type: ignore[union-attr]
    if not computes_indices(node):
        return None
    values = {given: _value(op, given, written) for given in node.all_input_nodes}
    if any(given is None or (isinstance(given, torch.Tensor) and given.is_meta) for given in values.values()):
        return None
    return run_node(node, *with_values(node, values.__getitem__))


def computes_indices(node: fx.Node) -> bool:
    """Whether the node is a tensor of the model, or calls an op that indices are computed with."""
    return node.op == "get_attr" or Trait.INDEX in traits(node)


def places(index: torch.Tensor, size: int) -> npt.NDArray[np.int64]:
    """The indices that are taken of a dimension, counted from the front."""
    taken: npt.NDArray[np.int64] = np.arange(size)[index.cpu().numpy()]
    return taken


def renumbered(op: Rewrite, index: Argument, kept: npt.NDArray[np.bool_]) -> Argument:
    """The same index among the indices that stay; a list stays a list, and a tensor becomes a buffer."""
    values = known_index(op, index)
    assert values is not None, f"{op.node}: {index} is not known"
    taken = places(values, len(kept))
    left = (np.cumsum(kept) - 1)[taken[kept[taken]]]
    if isinstance(index, fx.Node):
        return op.insert_buffer("index", torch.from_numpy(left).to(values.device))
    return [int(k) for k in left]

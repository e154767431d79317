"""Ops that depend on where the entries of a tensor lie in memory: that must not change with the channels."""

from __future__ import annotations

import math

from torch import Tensor, fx

from fxprune.channels import Labels, LabelTree, Size
from fxprune.rules.op import Op, map_values
from fxprune.rules.registry import rule

__all__ = ["memory_place"]


def _freeze_memory(op: Op, below: float) -> None:
    """Freeze the dimensions of all that shares memory with the first operand, if their strides are below this."""
    given = op.node.all_input_nodes[0]
    root = op.state.roots[given]
    for name, labels in list(op.labels_of.items()):
        node: fx.Node = op.state.nodes[name]
        if (
            op.state.roots[node] is root
            and isinstance(labels, Labels)
            and isinstance(value := node.meta["value"], Tensor)
        ):
            for dim, stride in zip(labels.dims, value.stride(), strict=True):
                if stride < below:
                    op.freeze(dim, f"read by {op.name}, which follows the memory")


@rule("as_strided", "as_strided_copy", "as_strided_scatter")
def as_strided(op: Op, input: Labels, *arguments: object, **options: object) -> LabelTree:
    _freeze_memory(op, math.inf)
    op.freeze((arguments, options), f"written by {op.name}, which follows the memory")
    return map_values(op.value)


@rule("stride", "storage_offset")
def memory_place(op: Op, input: Labels, *dim: int) -> Size:
    """A stride is a product of sizes: those of the dimensions with smaller strides."""
    _freeze_memory(op, op.value if dim else math.inf)
    return Size(None, False)

"""A plan: which channels stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph

__all__ = ["Plan", "kept_indices"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is kept of a model.

    Attributes:
        kept: parameter or buffer name -> {dimension: kept indices, ascending}; only what loses indices is listed.
        flops: predicted FLOPs of the pruned model, equal to what fvcore counts.
        flops_before: FLOPs of the model that the plan is for.
        flops_target: the most FLOPs that were allowed.
    """

    kept: Mapping[str, Mapping[int, list[int]]]
    flops: int
    flops_before: int
    flops_target: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (self.kept, self.flops, self.flops_before) == (other.kept, other.flops, other.flops_before)

    __hash__ = None  # type: ignore[assignment]


def kept_indices(graph: ChannelGraph, alive: npt.NDArray[np.bool_]) -> dict[str, dict[int, list[int]]]:
    """`Plan.kept` of the plan that keeps the channels marked in `alive`."""
    kept: dict[str, dict[int, list[int]]] = {}
    # Dimensions that carry the same channels share one list.
    indices: dict[int, list[int]] = {}
    for name, dims in graph.parameters.items():
        for d, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            if id(dim) not in indices:
                indices[id(dim)] = np.flatnonzero(alive[dim]).tolist()
            if len(indices[id(dim)]) < len(dim):
                kept.setdefault(name, {})[d] = indices[id(dim)]
    return kept

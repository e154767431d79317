"""Numbers that the graph has from a size without anyone having seen it: the model is recorded at another size.

Python asks nobody when it computes `0.5 * size`, takes `table[size]` or writes a size into a string. What comes of it
is a constant in the graph, or another branch. Where the graph of another size differs, and no check would refuse that
size, the graph is tied to the sizes that its code has read.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.tracing.guards import needed_guards
from fxprune.tracing.modes import compare
from fxprune.tracing.runs import Leaves, Recording, Runner
from fxprune.tracing.size_nodes import Guard

__all__ = ["is_position", "same_constants", "tie_unseen_sizes"]


def tie_unseen_sizes(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> None:
    """Add a guard for each size that changes the graph without one."""
    if not recorded.sizes.read_sizes() or recorded.draws_elsewhere:
        return
    trial = _Trial(runner, recorded, leaves, kept)
    if (unseen := trial.unseen(batch=True, positions=True)) is None:
        return
    apart = [trial.unseen(batch=batch, positions=not batch) or {} for batch in (True, False)]
    read = recorded.sizes.read_sizes()
    for place, size in dict(item for found in apart for item in found.items()).items() or unseen.items():
        recorded.sizes.guards.append(Guard(operator.pos, (read[place],), size, ("", 0)))


@dataclass(frozen=True)
class _Trial:
    """Recordings at other sizes, compared with the one at the example's."""

    runner: Runner
    recorded: Recording
    leaves: Leaves
    kept: set[str]

    def unseen(self, *, batch: bool, positions: bool) -> Mapping[tuple[str, int], int] | None:
        """The sizes that the code has read and that are others at twice the batch or the positions.

        They are named by node and dimension. None where the graph is the same, refuses these inputs, or there is none.
        """

        def larger(tensor: Tensor) -> Tensor:
            for d in range(tensor.ndim):
                if batch if d == 0 else positions and is_position(tensor, d):
                    tensor = torch.cat([tensor, tensor], d)
            return tensor

        args, kwargs = trees.map_tensors(larger, (self.runner.args, self.runner.kwargs))
        try:
            other = replace(self.runner, args=args, kwargs=kwargs).record(self.leaves, self.kept)
        except FxpruneError:
            return None
        if self._is_refused(other):
            return None
        differences = compare(self.recorded.builder, other.builder)
        constants = self.recorded.builder.constants, other.builder.constants
        if not (differences.scopes or differences.literals) and same_constants(*constants):
            return None
        theirs = other.sizes.read_sizes()
        ours = {place: int(size) for place, size in self.recorded.sizes.read_sizes().items()}
        return {place: size for place, size in ours.items() if place in theirs and int(theirs[place]) != size}

    def _is_refused(self, other: Recording) -> bool:
        """Whether a guard refuses the other sizes, or a loop has other steps."""
        needed = {id(guard) for guard in needed_guards(self.recorded.builder, self.recorded.sizes)}
        return any(
            ours.traced != theirs.traced and id(ours) in needed
            for ours, theirs in zip(self.recorded.sizes.guards, other.sizes.guards, strict=False)
            if ours.function is theirs.function
        )


def same_constants(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are the same that graphs have and the model's `state_dict` has not."""
    return ours.keys() == theirs.keys() and all(_is_same(ours[name], theirs[name]) for name in ours)


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.is_meta or other.is_meta:
        return one.shape == other.shape and one.dtype == other.dtype
    # Not a number is not equal to itself.
    return one is other or bool(((one == other) | (one != one) & (other != other)).all())


def is_position(tensor: Tensor, d: int) -> bool:
    """Whether a dimension is one of positions, and not of channels, in most models."""
    return d >= 2 if tensor.ndim > 3 else d == 1 and (tensor.ndim == 3 or not tensor.is_floating_point())

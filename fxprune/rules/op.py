"""A node while channel ids are carried through it: what a rule sees and does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, IdTable, Labels, LabelTree, Size, labels_in, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.errors import FxpruneError
from fxprune.rules.state import State

__all__ = ["BY_SIZE", "Op", "UnsupportedCall", "axis", "elements", "is_static", "map_values"]


# Why channels stay that a number selects, cuts or groups which is another one for other inputs.
BY_SIZE = "cut at a place that is computed from the batch or the resolution"


class UnsupportedCall(FxpruneError):  # noqa: N818
    """A rule does not handle a call that is legitimate; the message says what is not supported.

    The analysis then freezes everything that the call has to do with. Any other error of a rule is a bug.
    """


@dataclass(frozen=True, eq=False)
class Op:
    """A view of one node, for the rule that carries channel ids through it."""

    node: fx.Node
    module: nn.Module | None
    state: State

    @property
    def ids(self) -> IdTable:
        """The table of ids."""
        return self.state.ids

    @property
    def value(self) -> Any:
        """The node's value for the example inputs, its tensors on the meta device."""
        return self.node.meta["value"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the node's output for the example inputs."""
        return tuple(self.value.shape)

    @property
    def name(self) -> str:
        """What is called: the module's class, the function, or the method."""
        if self.module is not None:
            return type(self.module).__name__
        return str(getattr(self.node.target, "__name__", self.node.target))

    @property
    def labels_of(self) -> Mapping[str, LabelTree]:
        """What the values of the nodes so far carry, by node name."""
        return self.state.labels

    def weight(self, name: str, dims: Iterable[int] | None = None) -> Labels:
        """The labels of a parameter or buffer of the called module.

        Args:
            name: its name in the module.
            dims: the dimensions that may carry channels; default: all.

        Raises:
            UnsupportedCall: the module has no such parameter or buffer.
        """
        labels = self.find_weight(name, dims)
        if labels is None:
            raise UnsupportedCall(f"{self.name} has no parameter or buffer {name!r}")
        return labels

    def find_weight(self, name: str, dims: Iterable[int] | None = None) -> Labels | None:
        """As `weight`, but None where the module has no such parameter or buffer."""
        full = f"{self.node.target}.{name}"
        return self.state.parameters.labels(full, dims) if full in self.state.parameters else None

    def freeze(self, what: Any, reason: str) -> None:
        """The channels of a dimension, of labels, or of labels in tuples, lists and dicts cannot be pruned.

        The node's name is added to the reason.
        """
        if isinstance(what, (int, np.ndarray)):
            self.ids.freeze(what, f"{reason} ({self.node.name})")
        else:
            for labels in labels_in(what):
                for dim in labels.dims:
                    self.freeze(dim, reason)

    def mark_last_resort(self, dim: Dim, reason: str) -> None:
        """The channels of a dimension are pruned only if the budget cannot be met without them."""
        self.ids.mark_last_resort(dim, reason)

    def varies(self, x: Labels, d: int) -> bool:
        """Whether a dimension with channels of an argument has another size for inputs of other sizes.

        It then has positions among its channels, and what is at a place in it is another channel at another size.
        """
        source = next((node for node in self.node.all_input_nodes if self.labels_of[node.name] is x), None)
        if source is None or isinstance(x.dims[d], int) or self.state.sizes.fixed[source][d]:
            return False
        runs = (*self.state.sizes.shapes(source), *self.state.sizes.shapes(source, mixing=True))
        return any(shape[d] != x.shape[d] for (shape,) in runs)

    def sums_over(self, x: Labels, d: int) -> None:
        """The channels in dimension `d` of an argument are summed over here: gates act at this place."""
        argument = next((node for node in self.node.all_input_nodes if self.labels_of[node.name] is x), None)
        if argument is not None:
            self.sums_over_at(self.node, argument, d % len(x.dims))

    def sums_over_at(self, node: fx.Node, argument: fx.Node, d: int) -> None:
        """As `sums_over`, at this node or one before it."""
        labels = self.labels_of[argument.name]
        if isinstance(labels, Labels) and not isinstance(labels.dims[d], int):
            self.state.add_contraction(node, argument, d)

    def part(self, dim: Dim, which: slice | npt.NDArray[np.int64]) -> Dim:
        """Some of the indices of a dimension. A single index is no channel dimension any more."""
        if isinstance(dim, int):
            return len(range(*which.indices(dim))) if isinstance(which, slice) else len(which)
        cut = dim[which]
        if len(cut) > 1:
            return cut
        self.freeze(cut, "selected by number")
        return len(cut)

    def unite(self, left: Dim, right: Dim) -> Dim:
        """Two dimensions have the same channels, index by index. If only one of them has any, they are frozen.

        Raises:
            UnsupportedCall: the dimensions are not of the same size.
        """
        if size_of(left) != size_of(right):
            raise UnsupportedCall(f"dimensions of sizes {size_of(left)} and {size_of(right)} meet")
        if isinstance(left, int):
            left, right = right, left
        if not isinstance(left, int):
            if isinstance(right, int):
                given = any(node.op == "placeholder" for node in self.node.all_input_nodes)
                self.freeze(left, "model input" if given else "meets a dimension without channels")
            else:
                self.ids.unite(left, right)
        return left

    def unite_axis(self, ids: Ids, axis: int) -> Ids:
        """Let the channels of an array of ids depend on `axis` only; returns the ids along it."""
        moved = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
        first = np.ascontiguousarray(moved[:, 0])
        if moved.shape[1] > 1:
            self.ids.unite(np.repeat(first, moved.shape[1] - 1), moved[:, 1:].ravel())
        return first

    def argument(self, position: int, name: str) -> Argument:
        """An argument of the node as it is in the graph, given by position or by name."""
        return self.node.args[position] if position < len(self.node.args) else self.node.kwargs[name]

    def is_static(self, argument: Argument) -> bool:
        """Whether a size argument does not depend on the batch or the resolution."""
        return is_static(argument, self.labels_of)


def axis(x: Labels, d: int) -> int:
    """A dimension of a tensor, counted from the front.

    Raises:
        UnsupportedCall: the tensor has no such dimension; torch takes 0 and -1 for a tensor without dimensions.
    """
    rank = len(x.dims)
    if not -rank <= d < rank:
        raise UnsupportedCall(f"dimension {d} of a tensor of {rank} dimensions")
    return d % rank


def is_static(argument: Argument, labels_of: Mapping[str, LabelTree]) -> bool:
    """Whether a size argument, a number or a node, does not depend on the batch or the resolution."""
    if isinstance(argument, fx.Node):
        label = labels_of.get(argument.name)
        return isinstance(label, Size) and label.static
    return True


def map_values(value: Any) -> LabelTree:
    """The labels of a value that carries no channels, nested as it is; its numbers are not static."""
    if isinstance(value, torch.Tensor):
        return Labels.plain(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(map_values(item) for item in value)
    if isinstance(value, dict):
        return {key: map_values(item) for key, item in value.items()}
    return Size(None, False)


def elements(labels: Labels, scale: int = 1) -> Term:
    """`scale` times the number of elements of a tensor."""
    return term(scale, *labels.dims)

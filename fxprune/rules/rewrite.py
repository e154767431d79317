"""A node while the graph of the smaller model is written: what the second half of a rule sees and does."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Ids, Labels, LabelTree
from fxprune.errors import FxpruneError
from fxprune.rules.op import is_static

__all__ = ["Call", "Rewrite"]


@dataclass(frozen=True, eq=False)
class Call:
    """The call that a node becomes.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        target: what is called; None for what the node calls already.
    """

    args: tuple[Argument, ...]
    kwargs: Mapping[str, Argument] = field(default_factory=dict)
    target: Callable[..., Any] | str | None = None


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A view of one node of the new graph, for the rule that rewrites it.

    A module that is called several times is rewritten several times.

    Attributes:
        node: the node; its arguments are those of the original.
        alive: which channels stay.
        module: the called module, a copy that belongs to the new model.
        original: the called module of the original model.
        labels_of: what the value of every node carries, by node name.
    """

    node: fx.Node
    alive: npt.NDArray[np.bool_]
    module: nn.Module | None
    original: nn.Module | None
    labels_of: Mapping[str, LabelTree]

    @property
    def value(self) -> Any:
        """The node's value in the original model, its tensors on the meta device."""
        return self.node.meta["value"]

    @property
    def out(self) -> Labels:
        """The labels of the node's output."""
        return self.labels(self.node)

    def labels(self, node: Argument) -> Labels:
        """The labels of a tensor argument."""
        labels = self.labels_of[node.name] if isinstance(node, fx.Node) else None
        if not isinstance(labels, Labels):
            raise FxpruneError(f"{node} is not a node that gives one tensor")
        return labels

    def kept(self, dim: Ids) -> npt.NDArray[np.bool_]:
        """Which indices of a labelled dimension stay."""
        return self.alive[dim]

    def size(self, dim: Dim) -> int:
        """How many indices of a dimension stay."""
        return dim if isinstance(dim, int) else int(self.alive[dim].sum())

    def changed(self, dim: Dim) -> bool:
        """Whether a dimension loses indices."""
        return not isinstance(dim, int) and not bool(self.alive[dim].all())

    def number(self, argument: Argument) -> Any:
        """The value in the original model of an argument, a literal or a node."""
        return argument.meta["value"] if isinstance(argument, fx.Node) else argument

    def is_static(self, argument: Argument) -> bool:
        """Whether a size argument does not depend on the batch or the resolution."""
        return is_static(argument, self.labels_of)

    def insert(
        self, function: Callable[..., Any], args: tuple[Argument, ...], kwargs: dict[str, Argument] | None = None
    ) -> fx.Node:
        """A new call in front of the node."""
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.call_function(function, args, kwargs or {})

    def insert_parameter(self, name: str) -> fx.Node | None:
        """A new node for a parameter of the called module; None where it has none of that name."""
        if getattr(self.module, name, None) is None:
            return None
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.get_attr(f"{self.node.target}.{name}")

    def insert_buffer(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A new node for a new buffer, which is not saved in the state dict."""
        root = self.node.graph.owning_module
        assert root is not None
        free = next(made for k in itertools.count() if not hasattr(root, made := f"_{name}{k}"))
        root.register_buffer(free, tensor, persistent=False)
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.get_attr(free)

    def entries(self, argument: fx.Node) -> list[fx.Node]:
        """A new node for each entry of a node that gives a size."""
        made = []
        for k, value in enumerate(argument.meta["value"]):
            entry = self.insert(operator.getitem, (argument, k))
            entry.meta["value"] = value
            made.append(entry)
        return made

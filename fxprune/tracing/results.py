"""Results of calls: which node each tensor in them is, and numbers that remember how they were computed."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from torch import Tensor, fx

from fxprune.ops import name_of_op
from fxprune.running import trees
from fxprune.tracing.fixed_sizes import CUTS, dimension_cut
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.size_nodes import SizeNodes
from fxprune.tracing.sizes import TracedPieces, call_with_numbers

__all__ = ["Results"]


class Results:
    """Ties what calls return to the nodes of the graph."""

    def __init__(self, builder: GraphBuilder, sizes: SizeNodes) -> None:
        self._builder = builder
        self._sizes = sizes

    def adopt(self, value: Any, node: fx.Node, of_module: bool = False) -> Any:
        """What the model gets for the value of a node; `of_module` if that is a part of what a module returns."""
        of_module |= node.op == "call_module"
        if isinstance(value, Tensor):
            self._builder.bind(value, node)
            return value
        if type(value) in (int, float):
            return self._sizes.number_of(node, value)
        if type(value) is bool and of_module:
            # As a number it is seen where a branch follows it.
            return self._sizes.number_of(node, int(value))
        part = self._builder.create_part
        has_parts = trees.has_tensor(value) or (of_module and _has_plain(value))
        if isinstance(value, (tuple, list)) and has_parts:
            items = [self.adopt(item, part(operator.getitem, node, i, item), of_module) for i, item in enumerate(value)]
            count, rolls = self._number_of_pieces(node)
            if count is not None:
                return TracedPieces.of(tuple(items), node, count, rolls)
            # A named tuple cannot be rebuilt from its items in general; its tensors are bound all the same.
            return type(value)(items) if type(value) in (tuple, list) else value
        if isinstance(value, dict) and has_parts:
            entries = {
                key: self.adopt(item, part(operator.getitem, node, key, item), of_module) for key, item in value.items()
            }
            if type(value) is not dict:
                return value
            if node.op == "placeholder":
                return _Entries.of(entries, node, self._builder)
            return entries if of_module else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                item = getattr(value, field.name)
                if trees.has_tensor(item):
                    self.adopt(item, part(getattr, node, field.name, item))
        return value

    def _number_of_pieces(self, node: fx.Node) -> tuple[Any, bool]:
        """How many tensors the node gives, a traced number where the size of what it cuts says so; or None.

        And whether that number is meant to follow the size.
        """
        name = name_of_op(node.target)
        if name not in CUTS or not isinstance(node.args[0], fx.Node):
            return None, False
        (at, given), source, dim = CUTS[name], node.args[0], dimension_cut(node)
        number: Any = node.kwargs.get(given, node.args[1] if at == 2 and len(node.args) > 1 else 1)
        if dim is None or not isinstance(number, (int, fx.Node)):
            return None, False
        follows = name != "chunk" or isinstance(number, fx.Node)
        if isinstance(number, fx.Node):
            value = number.meta["value"]
            if not isinstance(value, int):
                return None, False
            number = self._sizes.number_of(number, value)
        if name == "chunk" and follows:
            return number, True
        shape = source.meta["value"].shape
        size = self._sizes.size(source, dim % len(shape), shape[dim])
        if name == "chunk":
            if not shape[dim] or any("by_values" in other.meta for other in self._builder.graph.nodes):
                # Nothing is cut into all pieces.
                size = call_with_numbers(max, (size, number * (1 - call_with_numbers(min, (size, 1)))))
            # Small sizes are cut into fewer pieces.
            number = (size + (number - 1)) // number
        return size if at == 1 else (size + (number - 1)) // number, follows


class _Entries(dict[Any, Any]):
    """A dict that the model is given; it notes whether its order is followed."""

    @staticmethod
    def of(entries: dict[Any, Any], node: fx.Node, builder: GraphBuilder) -> _Entries:
        """These entries, of an input."""
        made = _Entries(entries)
        made._note = lambda: builder.ordered.add(node)
        return made

    _note: Callable[[], None]

    def __iter__(self) -> Iterator[Any]:
        """Go through the keys."""
        self._note()
        return super().__iter__()

    def keys(self) -> Any:
        """All of them."""
        return KeysView(self)

    def values(self) -> Any:
        """All of them."""
        return ValuesView(self)

    def items(self) -> Any:
        """All of them."""
        return ItemsView(self)


def _has_plain(value: Any) -> bool:
    """Whether there are numbers in containers: values may decide them."""
    if isinstance(value, (tuple, list, dict)):
        return any(map(_has_plain, value.values() if isinstance(value, dict) else value))
    return type(value) in (int, float, bool)

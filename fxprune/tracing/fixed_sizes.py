"""Which sizes are the same whatever the sizes of the model's input: those of weights, and what is made of them.

An op that is not understood here counts as not fixed; then a size that is fixed gets a check that never fails.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from fxprune.ops import Trait, name_of_op, traits
from fxprune.running import trees
from fxprune.tracing.library_modules import is_library_module

__all__ = ["CUTS", "Fixed", "all_fixed", "dimension_cut", "fixed_sizes"]

# Whether sizes are fixed: a bool for a number, one for each dimension of a tensor, a tuple of these for several values.
Fixed: TypeAlias = "bool | tuple[Fixed, ...]"

#: Functions that give as many tensors as a size says: the position of their dimension, and the number before it.
CUTS = {"unbind": (1, ""), "split": (2, "split_size"), "unsafe_split": (2, "split_size"), "chunk": (2, "chunks")}


def fixed_sizes(
    graph: fx.Graph, module_of: Callable[[str], nn.Module], known: Mapping[fx.Node, Fixed] = MappingProxyType({})
) -> dict[fx.Node, Fixed]:
    """For each node, which of its sizes are fixed.

    Args:
        graph: of nodes whose example values are in their `meta`.
        module_of: gives the module of a path.
        known: what was found before the graph had all of its nodes.
    """
    fixed: dict[fx.Node, Any] = {**known}
    for node in graph.nodes:
        if node in fixed:
            continue
        module = module_of(str(node.target)) if node.op == "call_module" else None
        fixed[node] = _fixed(node, module, fixed)
    return fixed


def all_fixed(fixed: Fixed) -> bool:
    """Whether all sizes of a value are fixed."""
    return all(map(all_fixed, fixed)) if isinstance(fixed, tuple) else fixed


def _fill(value: Any, fixed: bool) -> Fixed:
    if isinstance(value, Tensor):
        return (fixed,) * value.ndim
    return tuple(_fill(item, fixed) for item in value) if isinstance(value, (tuple, list)) else fixed


def _fixed(node: fx.Node, module: nn.Module | None, fixed: Mapping[fx.Node, Any]) -> Fixed:
    value = node.meta["value"]
    # What a module of the model gives as a whole may be as large as values say, whatever is fixed.
    unknown = node.op == "placeholder" or (module is not None and not is_library_module(module))
    if unknown or "by_values" in node.meta:
        return _fill(value, False)
    # A number may come from the values of an input, as the longest of lengths does; then its layout says nothing.
    reads_values = not trees.has_tensor(value) and any(trees.has_tensor(n.meta["value"]) for n in node.all_input_nodes)
    name = name_of_op(node.target)
    if name in ("size", "numel") and reads_values:
        sizes = fixed[node.args[0]]  # type: ignore[index]
        return all_fixed(sizes) if name == "numel" else sizes if len(node.args) == 1 else sizes[node.args[1]]
    if all(all_fixed(fixed[given]) for given in node.all_input_nodes) and not reads_values:
        return _fill(value, True)
    first = next((fixed[given] for given in node.all_input_nodes if trees.has_tensor(given.meta["value"])), None)
    if first is None or reads_values:
        return _fill(value, False)
    try:
        known = _of_call(node, name, first, fixed) if module is None else _of_module(node, module, first)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        # The call is written in a way that is not foreseen here.
        known = None
    return _fill(value, False) if known is None else known


def _of_module(node: fx.Node, module: nn.Module, first: tuple[bool, ...]) -> Fixed | None:
    what = traits(node, module)
    if Trait.CONVOLUTION in what:
        rank: Any = len(module.kernel_size)  # type: ignore[arg-type]
        return (*first[: -rank - 1], True, *first[-rank:])
    if Trait.LINEAR in what:
        return (*first[:-1], True)
    activation = type(module).__module__ == "torch.nn.modules.activation" and Trait.CONTRACTION not in what
    return first if activation or Trait.KEEPS_SHAPE in what else None


def _of_call(node: fx.Node, name: str, first: Any, fixed: Mapping[fx.Node, Any]) -> Fixed | None:
    value, args, what = node.meta["value"], node.args, traits(node)
    if Trait.KEEPS_SHAPE in what and isinstance(value, Tensor):
        if Trait.ELEMENTWISE in what:
            return tuple(_of_broadcast(node, d, fixed) for d in range(-value.ndim, 0))
        # The other tensors are weights, or tensors whose type is read: their sizes say nothing about the result's.
        return tuple(first)
    if Trait.LINEAR in what:
        # A weight without rows gives no dimension.
        return (*first[:-1], *fixed[args[1]][:-1])  # type: ignore[index]
    if name == "scaled_dot_product_attention":
        # Samples and heads broadcast.
        return (*(_of_broadcast(node, d, fixed) for d in range(-value.ndim, -2)), first[-2], fixed[args[2]][-1])  # type: ignore[index]
    if name in ("matmul", "bmm") and value.ndim > 1 and len(fixed[args[1]]) > 1:  # type: ignore[index]
        return (*(_of_broadcast(node, d, fixed) for d in range(-value.ndim, -2)), first[-2], fixed[args[1]][-1])  # type: ignore[index]
    if name in ("view", "reshape"):
        sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        known = [n >= 0 if isinstance(n, int) else isinstance(n, fx.Node) and fixed[n] for n in sizes]
        return tuple(known) if len(known) == value.ndim and all(type(k) is bool for k in known) else None
    if name == "permute":
        order: Any = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return tuple(first[d] for d in order)
    if name == "transpose" and len(args) == 3:
        swapped = list(first)
        swapped[args[1]], swapped[args[2]] = first[args[2]], first[args[1]]  # type: ignore[index]
        return tuple(swapped)
    if name == "stack":
        return _of_stack(node, fixed)
    if name == "getitem" and isinstance(args[1], int) and not isinstance(args[0].meta["value"], Tensor):  # type: ignore[union-attr]
        piece: Fixed = first[args[1]]
        return piece
    if name in ("unbind", "split", "chunk"):
        return _of_pieces(node, name, first, fixed)
    return None


def _of_broadcast(node: fx.Node, d: int, fixed: Mapping[fx.Node, Any]) -> bool:
    """A size is fixed by one operand that has all of it, or by all operands."""
    size = node.meta["value"].shape[d]
    operands = [(n.meta["value"], fixed[n]) for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor)]
    there = [(value.shape[d], known[d]) for value, known in operands if value.ndim >= -d]
    return all(known for _, known in there) or any(known and own == size != 1 for own, known in there)


def _of_stack(node: fx.Node, fixed: Mapping[fx.Node, Any]) -> Fixed | None:
    given = node.args[0]
    if not isinstance(given, (tuple, list)) or not all(isinstance(item, fx.Node) for item in given):
        return None
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    known = [all(entries) for entries in zip(*(fixed[item] for item in given), strict=True)]  # type: ignore[index]
    in_loop = any("loop" in item.meta for item in given)  # type: ignore[union-attr]
    known.insert(operator.index(dim) % (len(known) + 1), not in_loop)  # type: ignore[arg-type]
    return tuple(known)


def _of_pieces(node: fx.Node, name: str, first: tuple[bool, ...], fixed: Mapping[fx.Node, Any]) -> Fixed | None:
    dim = dimension_cut(node)
    if dim is None:
        return None
    dim %= len(first)
    cut = () if name == "unbind" else (first[dim] and all(all_fixed(fixed[n]) for n in node.all_input_nodes[1:]),)
    return (first[:dim] + cut + first[dim + 1 :],) * len(node.meta["value"])


def dimension_cut(node: fx.Node) -> int | None:
    """The dimension along which an `unbind`, `split` or `chunk` cuts; None where that is no number."""
    at, _ = CUTS[name_of_op(node.target)]
    dim = node.kwargs.get("dim", node.args[at] if len(node.args) > at else 0)
    return dim if isinstance(dim, int) else None

"""Which sizes are the same whatever the sizes of the model's input: those of weights, and what is made of them.

What is not understood counts as not fixed; a size that is taken for that is checked once too often.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from fxprune.ops import Trait, name_of_op, traits
from fxprune.running import trees
from fxprune.tracing.recording import Recorder

__all__ = ["fixed_sizes", "is_whole"]


def fixed_sizes(recorded: Recorder) -> dict[fx.Node, Any]:
    """For each node whether each of its sizes is fixed: a tuple of a tensor, one bool of a number, a tuple of these."""
    fixed: dict[fx.Node, Any] = {}
    for node in recorded.graph.nodes:
        fixed[node] = _fixed(recorded, node, fixed)
    return fixed


def is_whole(fixed: Any) -> bool:
    """Whether all of what is told of a value is fixed."""
    return all(map(is_whole, fixed)) if isinstance(fixed, tuple) else bool(fixed)


def _fill(value: Any, known: bool) -> Any:
    if isinstance(value, Tensor):
        return (known,) * value.ndim
    return tuple(_fill(item, known) for item in value) if isinstance(value, (tuple, list)) else known


def _fixed(recorded: Recorder, node: fx.Node, fixed: dict[fx.Node, Any]) -> Any:
    value = node.meta["value"]
    if node.op == "placeholder":
        return _fill(value, False)
    # A number may be that of the values of an input, as the longest of lengths; its layout tells nothing of it.
    reads_values = not trees.has_tensor(value) and any(trees.has_tensor(n.meta["value"]) for n in node.all_input_nodes)
    name = name_of_op(node.target)
    if name in ("size", "numel") and reads_values:
        sizes = fixed[node.args[0]]  # type: ignore[index]
        return is_whole(sizes) if name == "numel" else sizes if len(node.args) == 1 else sizes[node.args[1]]
    if all(is_whole(fixed[given]) for given in node.all_input_nodes) and not reads_values:
        return _fill(value, True)
    first = next((fixed[given] for given in node.all_input_nodes if trees.has_tensor(given.meta["value"])), None)
    if first is None or reads_values:
        return _fill(value, False)
    try:
        known = _of_module(recorded, node, first) if node.op == "call_module" else _of_call(node, name, first, fixed)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        # A call written in a way that is not foreseen here.
        known = None
    return _fill(value, False) if known is None else known


def _of_module(recorded: Recorder, node: fx.Node, first: tuple[bool, ...]) -> Any:
    path = str(node.target)
    module: Any = recorded.functions[path] if path in recorded.functions else recorded.root.get_submodule(path)
    of_op = traits(node, module)
    if Trait.CONVOLUTION in of_op:
        return (*first[: -len(module.kernel_size) - 1], True, *first[-len(module.kernel_size) :])
    if Trait.LINEAR in of_op:
        return (*first[:-1], True)
    activation = type(module).__module__ == "torch.nn.modules.activation" and Trait.CONTRACTION not in of_op
    return first if activation or Trait.KEEPS_SHAPE in of_op else None


def _of_call(node: fx.Node, name: str, first: Any, fixed: dict[fx.Node, Any]) -> Any:
    value, args, of_op = node.meta["value"], node.args, traits(node)
    if Trait.KEEPS_SHAPE in of_op and isinstance(value, Tensor):
        # What is no element-wise op has the shape of its first tensor; of weights and types, the sizes say nothing.
        broadcast = Trait.ELEMENTWISE in of_op
        return tuple(_of_broadcast(node, d, fixed) for d in range(-value.ndim, 0)) if broadcast else first
    if Trait.LINEAR in of_op:
        return (*first[:-1], True)
    if name in ("view", "reshape"):
        sizes = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        known = [n >= 0 if isinstance(n, int) else isinstance(n, fx.Node) and fixed[n] for n in sizes]
        return tuple(known) if len(known) == value.ndim and all(type(k) is bool for k in known) else None
    if name == "permute":
        order = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return tuple(first[d] for d in order)
    if name == "transpose" and len(args) == 3:
        swapped = list(first)
        swapped[args[1]], swapped[args[2]] = first[args[2]], first[args[1]]  # type: ignore[index]
        return tuple(swapped)
    if name == "stack":
        return _of_stack(node, fixed)
    if name == "getitem" and isinstance(args[1], int) and not isinstance(args[0].meta["value"], Tensor):  # type: ignore[union-attr]
        return first[args[1]]
    if name in ("unbind", "split", "chunk"):
        return _of_pieces(node, name, first)
    return None


def _of_broadcast(node: fx.Node, d: int, fixed: dict[fx.Node, Any]) -> bool:
    """A size is fixed by one operand that has all of it, or by all operands."""
    size = node.meta["value"].shape[d]
    operands = [(n.meta["value"], fixed[n]) for n in node.all_input_nodes if isinstance(n.meta["value"], Tensor)]
    there = [(value.shape[d], known[d]) for value, known in operands if value.ndim >= -d]
    return all(known for _, known in there) or any(known and own == size != 1 for own, known in there)


def _of_stack(node: fx.Node, fixed: dict[fx.Node, Any]) -> Any:
    given = node.args[0]
    if not isinstance(given, (tuple, list)) or not all(isinstance(item, fx.Node) for item in given):
        return None
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    known = [all(entries) for entries in zip(*(fixed[item] for item in given), strict=True)]  # type: ignore[index]
    known.insert(operator.index(dim) % (len(known) + 1), True)  # type: ignore[arg-type]
    return tuple(known)


def _of_pieces(node: fx.Node, name: str, first: tuple[bool, ...]) -> Any:
    at = 1 if name == "unbind" else 2
    dim = node.kwargs.get("dim", node.args[at] if len(node.args) > at else 0)
    if not isinstance(dim, int):
        return None
    dim %= len(first)
    rest = (False,) if not first[dim] else (True,)
    piece = first[:dim] + (() if name == "unbind" else rest) + first[dim + 1 :]
    return tuple(piece for _ in node.meta["value"])

"""Training and eval: what a model does differently in training, and how its graph follows the mode."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn

from fxprune.ops import Trait, modules_with, traits
from fxprune.tracing.deciders import Deciders
from fxprune.tracing.graph_builder import GraphBuilder, Origin
from fxprune.tracing.scopes import ModuleCall
from fxprune.tracing.traced_module import ByMode

__all__ = [
    "Differences",
    "Literal",
    "are_alike",
    "arguments_differ",
    "compare",
    "drop_unused_pieces",
    "insert_modes",
    "is_other_value",
    "is_unused_piece",
    "replaced",
    "small_readers",
]

# The module that a function of dropout becomes.
_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout, "feature_alpha_dropout": nn.FeatureAlphaDropout,
}  # fmt: skip


@dataclass(frozen=True)
class Literal:
    """A literal argument of `node` that is `train_value` in training; `place` leads to it from (args, kwargs)."""

    node: fx.Node
    place: tuple[Any, ...]
    eval_value: Any
    train_value: Any


@dataclass(frozen=True)
class Differences:
    """How a model runs in training, compared with eval.

    Attributes:
        scopes: the paths of modules that run differently.
        calls_differ: those among them that make other calls.
        literals: numbers that differ where the calls are the same.
    """

    scopes: set[str]
    calls_differ: set[str]
    literals: list[Literal]


def compare(
    in_eval: GraphBuilder, in_training: GraphBuilder, *, ignored: AbstractSet[str] = frozenset()
) -> Differences:
    """How the graph of a model in training differs from that in eval, module call by module call.

    Args:
        in_eval: of the one graph.
        in_training: of the other.
        ignored: methods of tensors whose calls do not matter: they give what they are called on.
    """
    calls = [_nodes_by_call(builder, ignored) for builder in (in_eval, in_training)]
    calls_differ: set[str] = set()
    partner: dict[fx.Node, fx.Node] = {}
    for call in calls[0].keys() | calls[1].keys():
        ours, theirs = (by_call.get(call, []) for by_call in calls)
        if [(node.op, node.target) for node in ours] == [(node.op, node.target) for node in theirs]:
            partner.update(zip(ours, theirs, strict=True))
        else:
            calls_differ.add(call[0])
    differences = Differences(set(calls_differ), calls_differ, [])
    for node, other in partner.items():
        if "random" in other.meta:
            node.meta["random"] = True
        found: list[Literal] = []
        ours, theirs = (_without_ignored((n.args, n.kwargs), ignored) for n in (node, other))
        if arguments_differ(node, ours, theirs, (), partner, found):
            differences.scopes.add(node.meta["module"])
        else:
            differences.literals.extend(found)
    return differences


def _nodes_by_call(builder: GraphBuilder, ignored: AbstractSet[str]) -> dict[ModuleCall, list[fx.Node]]:
    by_call: dict[ModuleCall, list[fx.Node]] = {}
    for node in builder.graph.nodes:
        # Parameters are read where they are first used, which says nothing about the mode.
        if node.op != "get_attr" and not _is_ignored(node, ignored) and not is_unused_piece(node):
            by_call.setdefault(builder.calls[node], []).append(node)
    return by_call


def is_unused_piece(node: fx.Node) -> bool:
    """Whether a node takes a piece of what another gives, for nobody; of some there are more at other sizes."""
    return node.target is operator.getitem and not node.users and "mutates" not in node.meta


def drop_unused_pieces(graph: fx.Graph) -> None:
    """Leave out the nodes that take a piece for nobody: there are as many as pieces."""
    for node in reversed(graph.nodes):
        if is_unused_piece(node):
            graph.erase_node(node)


def _is_ignored(node: fx.Node, ignored: AbstractSet[str]) -> bool:
    return node.op == "call_method" and node.target in ignored


def _without_ignored(arguments: Any, ignored: AbstractSet[str]) -> Any:
    """Arguments in which the results of ignored calls are what these were called on."""

    def source(node: fx.Node) -> fx.Node:
        while _is_ignored(node, ignored):
            node = cast(fx.Node, node.args[0])
        return node

    return fx.node.map_arg(arguments, source) if ignored else arguments


def arguments_differ(
    node: fx.Node, ours: Any, theirs: Any, place: tuple[Any, ...], partner: dict[fx.Node, fx.Node],
    found: list[Literal],
) -> bool:  # fmt: skip
    """Whether the arguments of two nodes differ in more than numbers, which are added to those found."""
    if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node):
        if ours.op == "get_attr":
            return theirs.op != "get_attr" or ours.target != theirs.target
        return partner.get(ours) is not theirs
    if are_alike(ours, theirs) and isinstance(ours, (tuple, list)):
        return any(
            arguments_differ(node, a, b, (*place, i), partner, found)
            for i, (a, b) in enumerate(zip(ours, cast(Any, theirs), strict=True))
        )
    if are_alike(ours, theirs) and isinstance(ours, dict):
        found_in = cast(Any, theirs)
        return any(arguments_differ(node, ours[key], found_in[key], (*place, key), partner, found) for key in ours)
    if isinstance(ours, slice) and isinstance(theirs, slice):
        return arguments_differ(
            node, (ours.start, ours.stop, ours.step), (theirs.start, theirs.stop, theirs.step), place, partner, []
        ) or (not _has_node(ours) and ours != theirs)
    if isinstance(ours, (bool, int, float)) and isinstance(theirs, (bool, int, float)):
        if is_other_value(ours, theirs):
            found.append(Literal(node, place, ours, theirs))
        return False
    # Containers that come here are not alike.
    return bool(_kind(ours) or _kind(theirs) or ours != theirs)


def are_alike(ours: Any, theirs: Any) -> bool:
    """Whether two arguments are tuples, or lists, of as many items, or dicts of the same keys in the same order."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [*ours] == [*theirs]
    return _kind(ours) == _kind(theirs) in (tuple, list) and len(ours) == len(theirs)


def _kind(value: Any) -> type | None:
    """Which kind of container a value is; those of fx are subclasses."""
    return next((kind for kind in (tuple, list, dict) if isinstance(value, kind)), None)


def is_other_value(ours: Any, theirs: Any) -> bool:
    """Whether two values without nodes differ; not a number is not equal to itself."""
    return bool((ours != theirs and (ours == ours or theirs == theirs)) or type(ours) is not type(theirs))


def _has_node(value: slice) -> bool:
    return any(isinstance(part, fx.Node) for part in (value.start, value.stop, value.step))


def small_readers(
    model: nn.Module, readers: AbstractSet[str], differences: Differences, builder: GraphBuilder
) -> set[str]:
    """The modules to keep whole: they read the mode, the calls in them differ, and they hold no weights to prune."""
    small: set[str] = set()
    layers = {path for path, module in model.named_modules() if isinstance(module, modules_with(Trait.CONTRACTION))}
    layers |= {node.meta["module"] for node in builder.graph.nodes if _has_own_weight(builder, node)}
    for path in differences.calls_differ:
        while path and path not in readers:
            path = path.rpartition(".")[0]
        if path and not any(layer == path or layer.startswith(f"{path}.") for layer in layers):
            small.add(path)
    return small


def _has_own_weight(builder: GraphBuilder, node: fx.Node) -> bool:
    """Whether a node is a layer whose weight is a parameter; power iteration, which multiplies by vectors, is none."""
    return (
        Trait.CONTRACTION in traits(node)
        and node.meta["value"].dim() > 1
        and any(
            builder.origin[operand] == Origin.PARAMETERS and operand.meta["value"].dim() > 1
            for operand in node.all_input_nodes
            if isinstance(operand.meta["value"], Tensor)
        )
    )


def insert_modes(builder: GraphBuilder, literals: list[Literal], deciders: Deciders) -> None:
    """Turn literals that depend on the mode into modules, which follow train() and eval()."""
    by_node: dict[fx.Node, list[Literal]] = {}
    for literal in literals:
        by_node.setdefault(literal.node, []).append(literal)
    for node, found in by_node.items():
        dropout = _as_dropout(node, found)
        scope = deciders.of(node.meta["module"])
        prefix = f"{scope}." if scope else ""
        if dropout is not None:
            module, value = dropout
            node.target, node.op = builder.add_module(f"{prefix}functional_dropout", module), "call_module"
            node.args, node.kwargs = (value,), {}
            continue
        for literal in found:
            name = str(literal.place[-1]) if literal.place[0] == 1 else f"argument_{literal.place[-1]}"
            path = builder.add_module(f"{prefix}{name}_by_mode", ByMode(literal.train_value, literal.eval_value))
            with builder.graph.inserting_before(node):
                by_mode = builder.graph.create_node("call_module", path)
            by_mode.meta.update(value=literal.eval_value, train_value=literal.train_value, module=scope)
            args, kwargs = replaced((node.args, node.kwargs), literal.place, by_mode)
            node.args, node.kwargs = args, kwargs


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Arguments with another one at a place."""
    if not place:
        return new
    key, *rest = place
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], tuple(rest), new)}
    items = list(value)
    items[key] = replaced(items[key], tuple(rest), new)
    return tuple(items) if isinstance(value, tuple) else items


def _as_dropout(node: fx.Node, literals: list[Literal]) -> tuple[nn.Module, fx.Node] | None:
    name = getattr(node.target, "__name__", "")
    if node.op != "call_function" or getattr(nn.functional, name, None) is not node.target or name not in _DROPOUTS:
        return None
    signature = inspect.signature(cast(Callable[..., Any], node.target))
    bound = signature.bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    value, p, inplace = given["input"], given["p"], given["inplace"]
    only_training = len(literals) == 1 and (literals[0].eval_value, literals[0].train_value) == (False, True)
    if not only_training or not isinstance(value, fx.Node) or not isinstance(p, (int, float)):
        return None
    return _DROPOUTS[name](p=p, inplace=inplace), value

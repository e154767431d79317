"""The table of op rules, and the views of a node that the rules work with.

A rule keeps what an op does to channel ids (*propagate*), what it costs (*flops*) and how its node changes when
channels go (*rewrite*) side by side. The three functions take the op's own arguments, so Python binds them:

    @rule("flatten", nn.Flatten)
    def flatten(op, x, start_dim=0, end_dim=-1): ...

In *propagate* and *flops* a tensor argument is its `Labels`, every other argument its value; in *rewrite* arguments are
the nodes and literals of the graph that is being rewritten.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.channels import Dim, Ids, IdTable, Labels, Size, is_labelled, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.tracing.constants import is_constant

__all__ = ["Call", "Op", "Parameters", "Rewrite", "Rule", "Splits", "find_rule", "freeze_labels", "rule"]


class Parameters:
    """Ids of the dimensions of parameters and buffers; tied names share theirs."""

    def __init__(self, module: nn.Module, ids: IdTable) -> None:
        self._ids = ids
        self._tensors: dict[str, torch.Tensor] = {}
        self._canonical: dict[str, str] = {}
        first: dict[int, str] = {}
        for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
            for name, tensor in named:
                self._tensors[name] = tensor
                self._canonical[name] = first.setdefault(id(tensor), name)
        self.dims: dict[str, list[Dim]] = {}
        self._whole: set[tuple[str, int]] = set()
        self._zero: dict[str, tuple[bool, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def labels(self, name: str, dims: Iterable[int] | None = None) -> Labels:
        """The labels of a parameter; of its dimensions only `dims` (default: all) get ids, and none of size 1 or 0.

        The others are needed whole, also where the parameter is read elsewhere.
        """
        tensor, name = self._tensors[name], self._canonical[name]
        known = self.dims.setdefault(name, list(tensor.shape))
        given = set(range(tensor.dim()) if dims is None else dims)
        for d in range(tensor.dim()):
            if d in given and not is_labelled(known[d]) and size_of(known[d]) > 1:
                known[d] = self._ids.fresh(size_of(known[d]))
            if d not in given:
                self._whole.add((name, d))
            if (name, d) in self._whole and is_labelled(known[d]):
                self._ids.freeze(np.asarray(known[d]), f"{name} is needed whole in dimension {d}")
        # What the tracer made a buffer of is no buffer of the original: nothing is zero in it.
        zero = self._zero.get(name, (not is_constant(name),) * len(known))
        return Labels(tuple(known), zero)

    def write(self, name: str, zero: tuple[bool, ...]) -> None:
        """From here on removed channels are zero only where `zero` says so."""
        self._zero[self._canonical[name]] = zero

    def of_buffers(self) -> Iterator[Ids]:
        """The labelled dimensions of what is no parameter."""
        for name, dims in self.dims.items():
            if not isinstance(self._tensors[name], nn.Parameter):
                yield from (dim for dim in dims if not isinstance(dim, int))

    def by_name(self) -> dict[str, list[Dim]]:
        """The labelled dimensions of every name, tied ones included."""
        return {name: self.dims[main] for name, main in self._canonical.items() if main in self.dims}


@dataclass(frozen=True, eq=False)
class Splits:
    """Which factor carries the channels where a dimension is split, as heads x width; `avoided` ones are not taken.

    A split is known by its node, the factors of its shape, the dimension, and the factor.
    """

    avoided: frozenset[Any] = frozenset()
    chosen: dict[Any, Ids] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Op:
    """One node while its ids are being propagated."""

    node: fx.Node
    ids: IdTable
    parameters: Parameters
    module: nn.Module | None
    labels_of: dict[str, Any]
    contractions: list[tuple[Labels, int]] = field(default_factory=list)
    summed: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    root: dict[fx.Node, fx.Node] = field(default_factory=dict)
    input_dependent: set[fx.Node] = field(default_factory=set)
    splits: Splits = field(default_factory=Splits)

    @property
    def value(self) -> Any:
        """The node's value at the example inputs, tensors on the meta device."""
        return self.node.meta["value"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the node's output at the example inputs."""
        return tuple(self.value.shape)

    @property
    def name(self) -> str:
        """What is called: the module's class, the function, the method."""
        if self.module is not None:
            return type(self.module).__name__
        return str(getattr(self.node.target, "__name__", self.node.target))

    def weight(self, name: str, dims: Iterable[int] | None = None) -> Labels | None:
        """The labels of the called module's own parameter or buffer, `None` where it has none."""
        full = f"{self.node.target}.{name}"
        return self.parameters.labels(full, dims) if full in self.parameters else None

    def freeze(self, what: Labels | Dim, reason: str) -> None:
        """These channels cannot be pruned; the node's name is added to the reason."""
        dims = what.dims if isinstance(what, Labels) else (what,)
        for dim in dims:
            if not isinstance(dim, int):
                self.ids.freeze(dim, f"{reason} ({self.node.name})")

    def sums_over(self, x: Labels, d: int) -> None:
        """The channels of dimension `d` of an argument are summed over here: this is where a gate acts."""
        self.contractions.append((x, d % len(x.dims)))

    def enters_at(self, user: fx.Node, x: fx.Node, d: int) -> None:
        """As `enters`, at a node before this one, or this one."""
        if not isinstance(self.labels_of[x.name].dims[d], int):
            self.summed[user.name] = tuple(dict.fromkeys((*self.summed.get(user.name, ()), (x.name, d))))

    def written(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """What these nodes change in place, each by the first node that shares its memory."""
        names = {name for node in nodes for name in node.meta.get("mutates", ())}
        return {first for node, first in self.root.items() if node.name in names}

    def mark_last_resort(self, dim: Dim, reason: str) -> None:
        """These channels are pruned only when the budget cannot be met without."""
        if not isinstance(dim, int):
            self.ids.mark_last_resort(dim, reason)

    def part(self, dim: Dim, which: slice | npt.NDArray[np.int64]) -> Dim:
        """Some of a dimension's indices; a single index is not a channel dimension any more."""
        if isinstance(dim, int):
            return len(range(*which.indices(dim))) if isinstance(which, slice) else len(which)
        cut = dim[which]
        if len(cut) > 1:
            return cut
        self.freeze(cut, "selected by number")
        return len(cut)

    def unite(self, left: Dim, right: Dim) -> Dim:
        """Two dimensions that are the same, index by index; one without channels keeps the other whole."""
        assert size_of(left) == size_of(right), f"{self.node}: {size_of(left)} is not {size_of(right)}"
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
        """Make an array of ids depend on `axis` alone; returns the ids along it."""
        moved = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
        first = np.ascontiguousarray(moved[:, 0])
        if moved.shape[1] > 1:
            self.ids.unite(np.repeat(first, moved.shape[1] - 1), moved[:, 1:].ravel())
        return first

    def is_static(self, argument: Any) -> bool:
        """Whether a size argument is independent of the batch and the resolution."""
        return _is_static(argument, self.labels_of)


def _is_static(argument: Any, labels_of: dict[str, Any]) -> bool:
    if isinstance(argument, fx.Node):
        label = labels_of.get(argument.name)
        return isinstance(label, Size) and label.static
    return True


@dataclass(frozen=True, eq=False)
class Call:
    """What a node becomes."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Any = None


@dataclass(frozen=True, eq=False)
class Rewrite:
    """One node of the new graph while it is being rewritten.

    A module that is called several times is rewritten several times: what it was before stands in `original`.
    """

    node: fx.Node
    alive: npt.NDArray[np.bool_]
    module: nn.Module | None
    original: nn.Module | None
    labels_of: dict[str, Any]

    @property
    def value(self) -> Any:
        """The node's value in the original model, tensors on the meta device."""
        return self.node.meta["value"]

    @property
    def out(self) -> Labels:
        """The labels of the node's own output."""
        labels = self.labels_of[self.node.name]
        assert isinstance(labels, Labels)
        return labels

    def labels(self, node: Any) -> Labels:
        """The labels of an argument."""
        labels = self.labels_of[node.name]
        assert isinstance(labels, Labels)
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

    def number(self, argument: Any) -> Any:
        """The value that a literal or a node of the graph has in the original model."""
        return argument.meta["value"] if isinstance(argument, fx.Node) else argument

    def is_static(self, argument: Any) -> bool:
        """Whether a size argument is independent of the batch and the resolution."""
        return _is_static(argument, self.labels_of)

    def insert(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """A new call in front of the node."""
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.call_function(function, args, kwargs or {})

    def insert_parameter(self, name: str) -> fx.Node | None:
        """A new node for the called module's own parameter; None where it has none."""
        if getattr(self.module, name, None) is None:
            return None
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.get_attr(f"{self.node.target}.{name}")

    def insert_buffer(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A new node for a new buffer, which is no part of the state dict."""
        root = self.node.graph.owning_module
        assert root is not None
        free = next(made for k in itertools.count() if not hasattr(root, made := f"_{name}{k}"))
        root.register_buffer(free, tensor, persistent=False)
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.get_attr(free)

    def take_apart(self, argument: fx.Node) -> list[Any]:
        """The entries of a node that holds a size."""
        entries = []
        for k, value in enumerate(argument.meta["value"]):
            entry = self.insert(operator.getitem, (argument, k))
            entry.meta["value"] = value
            entries.append(entry)
        return entries


P = TypeVar("P", bound=Callable[..., Any])


class Rule(Generic[P]):
    """What an op does to ids, what it costs and how it is rewritten."""

    def __init__(self, propagate: P) -> None:
        self.propagate = propagate
        self.flops_of: Callable[..., list[Term]] | None = None
        self.rewrite_of: Callable[..., Call | None] | None = None
        self.__doc__ = propagate.__doc__

    def flops(self, function: Callable[..., list[Term]]) -> Callable[..., list[Term]]:
        """Register what the op costs: `function(op, out, *args)` gives the terms of the polynomial."""
        self.flops_of = function
        return function

    def rewrite(self, function: Callable[..., Call | None]) -> Callable[..., Call | None]:
        """Register how a node changes: `function(op, *args)` gives the new call, or None to leave it."""
        self.rewrite_of = function
        return function


_RULES: dict[Any, Rule[Any]] = {}
_NAMESPACES = (torch, F, operator, torch.linalg, torch.special, torch.Tensor)


def rule(*targets: Any) -> Callable[[P], Rule[P]]:
    """Register a rule for functions, module classes and names.

    A name stands for the tensor method and for the functions of that name in torch, torch.nn.functional and operator;
    "library.name" for that operator in `torch.ops`, whether the library is installed or not.
    """

    def register(propagate: P) -> Rule[P]:
        made = Rule(propagate)
        for target in targets:
            for key in _resolve(target):
                _RULES[key] = made
        return made

    return register


def _resolve(target: Any) -> list[Any]:
    if not isinstance(target, str):
        return [target]
    found = [getattr(space, target) for space in _NAMESPACES if hasattr(space, target)]
    return [target, *found]


def find_rule(node: fx.Node, module: nn.Module | None, overridden: bool = False) -> Rule[Any] | None:
    """The rule of a node, `None` where there is none.

    A subclass of a known module has its base's rule as long as it does not override `forward`; with `overridden` also
    when it does.
    """
    if module is not None:
        kind = type(module)
        for base in kind.__mro__:
            if base in _RULES:
                same = _forward_of(kind) is _forward_of(base)
                return _RULES[base] if same or overridden else None
        return None
    if node.op not in ("call_function", "call_method"):
        return None
    found = _RULES.get(node.target)
    if found is None and isinstance(node.target, str):
        found = _RULES.get(node.target.removesuffix("_"))
    if found is None and isinstance(node.target, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        found = _RULES.get(str(node.target).removesuffix(".default"))
    return found


def _forward_of(kind: type) -> Any:
    return getattr(kind, "forward", None)


def freeze_labels(op: Op, values: Any, reason: str) -> None:
    """Freeze every channel in some arguments."""
    if isinstance(values, Labels):
        op.freeze(values, reason)
    elif isinstance(values, (tuple, list)):
        for value in values:
            freeze_labels(op, value, reason)
    elif isinstance(values, dict):
        freeze_labels(op, list(values.values()), reason)


def numel(labels: Labels, scale: int = 1) -> Term:
    """`scale` times the number of elements."""
    return term(scale, *labels.dims)

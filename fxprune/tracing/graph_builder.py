"""The graph while it is recorded: its nodes, what each is computed from, and which tensor each one gives.

The node of a tensor is found by the tensor's identity.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.copies import META
from fxprune.tracing.constants import Place, constant_name, place_of_tensor
from fxprune.tracing.limits import TypeUse, limit_of
from fxprune.tracing.scopes import ModuleCall, Scopes

__all__ = [
    "GraphBuilder",
    "HiddenTensorError",
    "Origin",
    "computed_from",
    "entries_read",
    "is_count",
    "reads_layout",
    "reads_size",
]


class HiddenTensorError(FxpruneError):
    """A tensor was made by what torch does not show."""


class Origin(IntEnum):
    """What a value is computed from: the highest of its inputs. Without INPUTS, it is the same in every call."""

    CONSTANTS = 0
    PARAMETERS = 1
    INPUTS = 2


class GraphBuilder:
    """Builds the graph of a model.

    Attributes:
        root: the model, on the meta device.
        scopes: the module calls that are in progress.
        graph: what is built.
        origin: what each node is computed from.
        calls: the module call that made each node.
        constants: tensors that the graph needs and the model's state_dict does not have, by name.
        constant_places: where the model keeps them, if it does.
        added_modules: modules that the graph has in addition to the model's, by path.
        remarks: what was taken as constant, in words.
        differentiable: how many nodes were computed from parameters or inputs.
        loops: how many loops over sizes were started.
        step: the number of the loop that the model's code is in, and that of its step; None outside of loops.
        finished_loops: the numbers of those that came to their end.
        single_loops: the numbers of those whose further steps may do something else.
        confirmed_loops: the numbers of those whose further steps were seen to do the same.
        deferred: errors that are raised where the model's code needs what is unknown.
        ordered: the inputs that are dicts whose order the model's code has followed.
        left: for the nodes of tensors that are left from an earlier call, those that they had in its graph.
        type_uses: the types that the model's code gave to functions.
        stored: for the nodes of tensors that the graph writes into state at its end, the nodes of that state.
    """

    def __init__(
        self, root: nn.Module, real: Mapping[int, Tensor], scopes: Scopes, earlier: GraphBuilder | None = None
    ) -> None:
        self.root = root
        self.scopes = scopes
        self.graph = fx.Graph()
        self.origin: dict[fx.Node, Origin] = {}
        self.calls: dict[fx.Node, ModuleCall] = {}
        self.constants: dict[str, Tensor] = {}
        self.constant_places: dict[str, Place] = {}
        self.added_modules: dict[str, nn.Module] = {}
        self.remarks: list[str] = []
        self.differentiable = 0
        self.loops = 0
        self.step: tuple[int, int] | None = None
        self.finished_loops: set[int] = set()
        self.single_loops: set[int] = set()
        self.confirmed_loops: set[int] = set()
        self.deferred: list[Exception] = []
        self.ordered: set[fx.Node] = set()
        self.type_uses: list[TypeUse] = []
        self.left: dict[fx.Node, fx.Node] = {}
        self.stored: dict[fx.Node, fx.Node] = {}
        self._earlier = earlier
        self._own_modules = dict(root.named_modules(remove_duplicate=False))
        # The real tensor for the identity of each tensor on the meta device.
        self._real = real
        self._names = {id(tensor): name for name, tensor in _named_tensors(root)}
        # Each value is kept beside its node, so that no other object gets its identity.
        self._bound: dict[int, tuple[Any, fx.Node]] = {}

    # -- nodes --

    def create_node(
        self, op: str, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Argument], value: Any,
        origin: Origin,
    ) -> fx.Node:  # fmt: skip
        """A node of the module call in progress; its value has tensors on the meta device."""
        if target is operator.pow and isinstance(args[0], (int, float)) and args[0] < 0:
            # torch.fx, and torch.compile with it, would write `-1 ** x`, which is -(1 ** x).
            target = torch.pow if isinstance(value, Tensor) else pow
        node = self.graph.create_node(op, target, args, kwargs)
        self.calls[node] = self.scopes.current
        node.meta["value"] = value
        node.meta["module"] = self.scopes.current[0]
        if self.step is not None:
            node.meta["loop"] = self.step
        self.origin[node] = origin
        self.differentiable += origin >= Origin.PARAMETERS
        return node

    def create_part(self, function: Callable[..., Any], node: fx.Node, key: Any, value: Any) -> fx.Node:
        """A node for an entry or an attribute of what another node gives."""
        part = self.create_node("call_function", function, (node, key), {}, value, self.origin[node])
        if reads_layout(part):
            self.origin[part] = min(self.origin[node], Origin.PARAMETERS)
        return part

    def create_check(self, check: Callable[..., Any], args: tuple[Argument, ...]) -> fx.Node:
        """A node that gives nothing and must stay."""
        node = self.create_node("call_function", check, args, {}, None, Origin.INPUTS)
        node.meta["check"] = True
        return node

    def repeats(self, loop: int) -> bool:
        """Whether all steps of a loop may be like those that the model's code has gone through."""
        return loop in self.finished_loops and loop not in self.single_loops

    def note_length(self, items: Any) -> None:
        """The model's code has asked how many tensors a list has: as many as steps of a loop that filled it."""
        for item in items:
            node = self.find(item) if isinstance(item, Tensor) else None
            if node is not None and "loop" in node.meta:
                self.single_loops.add(node.meta["loop"][0])

    # -- modules --

    def module(self, path: str) -> nn.Module:
        """The module that a node calls."""
        return self.added_modules[path] if path in self.added_modules else self._own_modules[path]

    def add_module(self, stem: str, module: nn.Module) -> str:
        """Give the graph a module of its own; returns its path, which is `stem` or starts with it."""
        path, count = stem, 0
        while path in self._own_modules or path in self.added_modules:
            count += 1
            path = f"{stem}_{count}"
        self.added_modules[path] = module
        return path

    # -- values --

    def bind(self, value: Any, node: fx.Node) -> fx.Node:
        """From now on this very object is the node's value."""
        self._bound[id(value)] = value, node
        return node

    def find(self, value: Any) -> fx.Node | None:
        """The node of this very object, if there is one yet."""
        entry = self._bound.get(id(value))
        return None if entry is None else entry[1]

    def is_named(self, tensor: Tensor) -> bool:
        """Whether this very tensor is a parameter or a buffer."""
        return id(tensor) in self._names

    def is_taken(self, tensor: Tensor) -> bool:
        """Whether this very tensor is a parameter, a buffer or the value of a node."""
        return id(tensor) in self._bound or self.is_named(tensor)

    def module_of(self, node: fx.Node, real_module: Callable[[str], nn.Module]) -> nn.Module | None:
        """The module that a node calls, with its values: one that the graph has in addition, or one of the model's."""
        if node.op != "call_module":
            return None
        path = str(node.target)
        return self.added_modules[path] if path in self.added_modules else real_module(path)

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node of this very tensor; parameters, buffers and constants get theirs at their first use."""
        node = self.find(tensor)
        if node is not None:
            return node
        name = self._names.get(id(tensor))
        if name is not None:
            origin = Origin.PARAMETERS if isinstance(tensor, nn.Parameter) else Origin.CONSTANTS
            return self.bind(tensor, self.create_node("get_attr", name, (), {}, tensor, origin))
        left = self._earlier.find(tensor) if self._earlier is not None else None
        if left is not None:
            node = self.create_node("get_attr", constant_name(len(self.left)), (), {}, tensor, Origin.CONSTANTS)
            self.left[node] = left
            return self.bind(tensor, node)
        if tensor.is_meta and id(tensor) not in self._real:
            return self._node_of_same_memory(tensor)
        # The model keeps it as a plain attribute, or a function made it that torch does not show to tracers.
        value = tensor.detach().to(META)
        return self.bind(
            tensor, self.create_node("get_attr", self._add_constant(tensor), (), {}, value, Origin.CONSTANTS)
        )

    def _add_constant(self, tensor: Tensor) -> str:
        name = constant_name(len(self.constants))
        self.constants[name] = self._real.get(id(tensor), tensor).detach()
        place = place_of_tensor(self.root, tensor)
        if place is not None:
            self.constant_places[name] = place
        return name

    def _node_of_same_memory(self, tensor: Tensor) -> fx.Node:
        """A node for what a function hidden from tracers made of a known tensor, as `autograd.Variable(x)` does."""
        bound = [other for other, _ in self._bound.values() if isinstance(other, Tensor)]
        for other in (*reversed(bound), *(other for _, other in _named_tensors(self.root))):
            if other.is_meta and _memory(other) == _memory(tensor):
                source = self.node_of(other)
                node = self.create_node("call_method", "detach", (source,), {}, tensor, self.origin[source])
                return self.bind(tensor, node)
        raise HiddenTensorError(
            f"a tensor of shape {tuple(tensor.shape)} was made by a function that torch does not show to tracers, so "
            "its values are unknown; in place of `Kind(size)`, of a class of tensors, write `torch.empty(size)`"
        )

    def mark_written(self, tensor: Tensor) -> None:
        """A tensor was changed: what may share its memory can no longer be computed from its node alone."""
        node = self.find(tensor)
        stack = [] if node is None else [node]
        while stack:
            node = stack.pop()
            if self.origin[node] < Origin.INPUTS:
                self.origin[node] = Origin.INPUTS
                stack.extend(node.all_input_nodes)
                stack.extend(node.users)


def reads_layout(node: fx.Node) -> bool:
    """Whether a node reads a size, dtype or device, which is known without the tensor's entries."""
    if node.target is getattr:
        return node.args[1] in ("device", "dtype")
    return node.target is limit_of or reads_size(node)


def reads_size(node: fx.Node) -> bool:
    """Whether a node reads a size of a tensor, or where its entries lie in memory, which its sizes decide."""
    return node.op == "call_method" and node.target in ("size", "numel", "stride", "storage_offset")


def entries_read(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node whose entries it reads: not sizes, types and devices."""
    return [source for source in node.all_input_nodes if not reads_layout(source)]


def computed_from(node: fx.Node, sources: Callable[[fx.Node], Iterable[fx.Node]] = entries_read) -> Iterator[fx.Node]:
    """A node and what it is computed from, each node once; `sources` gives what comes before one of them."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            yield current
            stack.extend(sources(current))


def is_count(node: fx.Node) -> bool:
    """Whether a whole number is computed from whole numbers only, as the longest of given lengths is."""
    for current in computed_from(node):
        tensors = trees.tensors([current.meta["value"]])
        if any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors) or "random" in current.meta:
            return False
    return node.meta["value"].dtype is not torch.bool


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same entries of the same memory, and for no others."""
    place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return *place, tensor.size(), tensor.stride(), tensor.dtype


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_buffers()
    yield from module.named_parameters()

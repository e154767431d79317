"""The graph while it is made: which node each value of the model is, and what arguments become in it.

A tensor's node is found by the tensor's identity. A size is an `int` that knows how it was computed (`TracedInt`), and
becomes nodes only where a torch call takes it.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.ops import name_of_op
from fxprune.running import trees
from fxprune.running.copies import META
from fxprune.tracing.constants import Place, constant_name, place_of_tensor
from fxprune.tracing.sizes import TracedInt, TracedNumber, TracedPieces, plain, read_size, traced_number, untraced_type
from fxprune.tracing.user_code import user_frame

__all__ = ["INPUTS", "NOTHING", "PARAMETERS", "Guard", "Nodes"]


class ForeignTypeError(FxpruneError):
    """An object that is neither a tensor nor a container of tensors was to become part of the graph."""


@dataclass(frozen=True)
class Guard:
    """`function(*operands)` was `traced`, and the code went on accordingly; `scope` is the module call that did."""

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    traced: Any
    scope: tuple[str, int]


_GRAPH_LITERALS = frozenset(
    {int, float, str, bool, complex, type(None), type(...), torch.memory_format, torch.layout}
)  # fmt: skip
# What torch takes these types for.
_DTYPES: dict[Any, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool, complex: torch.complex128}
# Functions that give as many tensors as a size says: where they have the dimension, and what they call the number that
# goes before it.
_CUTS = {"unbind": (1, ""), "split": (2, "split_size"), "unsafe_split": (2, "split_size"), "chunk": (2, "chunks")}
# What a node is computed from; the highest of its inputs. Values up to PARAMETERS can be had without an input.
NOTHING, PARAMETERS, INPUTS = 0, 1, 2


class Nodes:
    """The nodes of `module` (on the meta device); `real` gives the real tensor for the identity of a meta tensor."""

    def __init__(self, module: nn.Module, real: dict[int, Tensor]) -> None:
        self.graph = fx.Graph()
        self.active = True
        self.running_leaf = 0
        self.thread = threading.get_ident()
        self.root = module
        self.real = real
        self.attributes = {id(tensor): name for name, tensor in _named_tensors(module)}
        # The tensor is kept with its node, so that its identity stays its own.
        self.known: dict[int, tuple[Any, fx.Node]] = {}
        self.origin: dict[fx.Node, int] = {}
        self.example: dict[fx.Node, Any] = {}
        self.constants: dict[str, Tensor] = {}
        # Where the model keeps them, if it does.
        self.constant_places: dict[str, Place] = {}
        self.scopes: dict[fx.Node, tuple[str, int]] = {}
        self.scope: list[tuple[str, int]] = [("", 0)]
        self.notes: list[str] = []
        self.guards: list[Guard] = []
        self.dtypes: dict[torch.dtype, tuple[CodeType | None, fx.Node]] = {}
        self.takes_pieces = False
        self.differentiable = 0
        self._is_output = False
        self._sizes: dict[tuple[fx.Node, int], TracedInt] = {}
        self._last_after: dict[fx.Node, fx.Node] = {}
        self._last_placeholder: fx.Node | None = None

    # -- nodes --

    def create_node(self, op: str, target: Any, args: Any, kwargs: Any, value: Any, origin: int) -> fx.Node:
        """A node with its value on the meta device, of the module that is being run."""
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta["value"] = value
        node.meta["module"] = self.scope[-1][0]
        self.scopes[node] = self.scope[-1]
        self.origin[node] = origin
        self.differentiable += origin >= PARAMETERS
        return node

    def placeholder(self, name: str, meta_value: Any, real_value: Any) -> Any:
        """What the model is called with for its argument `name`."""
        node = self.create_node("placeholder", name, (), {}, meta_value, INPUTS)
        self._last_placeholder = node
        self.example[node] = real_value
        return meta_value

    def adopt_placeholders(self) -> dict[str, Any]:
        """The arguments to call the model with, after all placeholders have been made."""
        return {cast(str, node.target): self.adopt(node.meta["value"], node) for node in list(self.graph.nodes)}

    def adopt(self, value: Any, node: fx.Node) -> Any:
        """Ties `value`, or the tensors in it, to `node`."""
        if isinstance(value, Tensor):
            self.known[id(value)] = (value, node)
            return value
        if type(value) in (int, float):
            number = traced_number(self, operator.pos, (value,), value)
            number.cached = node
            return number
        if isinstance(value, (tuple, list)) and trees.has_tensor(value):
            items = [self.adopt(item, self.part(operator.getitem, node, i, item)) for i, item in enumerate(value)]
            count = self._number_of_pieces(node)
            if count is not None:
                return TracedPieces.of(tuple(items), node, count)
            # Named tuples cannot be rebuilt from their items in general; their tensors are known all the same.
            return type(value)(items) if type(value) in (tuple, list) else value
        if isinstance(value, dict) and trees.has_tensor(value):
            for key, item in value.items():
                self.adopt(item, self.part(operator.getitem, node, key, item))
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                item = getattr(value, field.name)
                if trees.has_tensor(item):
                    self.adopt(item, self.part(getattr, node, field.name, item))
        return value

    def _number_of_pieces(self, node: fx.Node) -> Any:
        """How many tensors the node gives, a traced number where the size of what it cuts says so; or None."""
        name = name_of_op(node.target)
        if name not in _CUTS or not isinstance(node.args[0], fx.Node):
            return None
        (at, given), source = _CUTS[name], node.args[0]
        dim = node.kwargs.get("dim", node.args[at] if len(node.args) > at else 0)
        number: Any = node.kwargs.get(given, node.args[1] if at == 2 and len(node.args) > 1 else 1)
        if not isinstance(dim, int) or not isinstance(number, (int, fx.Node)):
            return None
        if name == "chunk" and isinstance(number, int):
            # As many for all sizes but the smallest.
            return None
        if isinstance(number, fx.Node):
            value = number.meta["value"]
            if not isinstance(value, int):
                return None
            node_of_it, number = number, traced_number(self, operator.pos, (value,), value)
            number.cached = node_of_it
        if name == "chunk":
            return number
        shape = source.meta["value"].shape
        size = self.size(source, dim % len(shape), shape[dim])
        return size if at == 1 else (size + (number - 1)) // number

    def from_behind(self, node: fx.Node, value: Tensor, index: int) -> Any:
        """A piece by its number from behind, which other sizes have too."""
        return self.adopt(value.detach(), self.part(operator.getitem, node, index, value))

    def guard(self, function: Callable[..., Any], operands: tuple[Any, ...], traced: Any) -> None:
        """From here on the recording supposes that `function(*operands)` is `traced`."""
        if self.active and not self.running_leaf and threading.get_ident() == self.thread:
            self.guards.append(Guard(function, operands, traced, self.scope[-1]))

    def create_check(self, check: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """A node that gives nothing and must not go."""
        self.create_node("call_function", check, args, {}, None, INPUTS).meta["check"] = True

    def part(self, function: Callable[..., Any], node: fx.Node, key: Any, value: Any) -> fx.Node:
        """A node for an entry or an attribute of what another node gives."""
        layout = function is getattr and key in ("device", "dtype")
        origin = min(self.origin[node], PARAMETERS) if layout else self.origin[node]
        return self.create_node("call_function", function, (node, key), {}, value, origin)

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node whose value is this very tensor; parameters and constants get theirs when they are first used."""
        entry = self.known.get(id(tensor))
        if entry is not None:
            return entry[1]
        name = self.attributes.get(id(tensor))
        if name is None and tensor.is_meta and id(tensor) not in self.real:
            return self._detached(tensor)
        if name is None:
            # Either a tensor that the model keeps as a plain attribute, or one made by a function torch cannot show us.
            name = constant_name(len(self.constants))
            real = self.real.get(id(tensor), tensor)
            self.constants[name] = real.detach()
            place = place_of_tensor(self.root, tensor)
            if place is not None:
                self.constant_places[name] = place
            value, origin = tensor.detach().to(META), NOTHING
        else:
            value, origin = tensor, PARAMETERS if isinstance(tensor, nn.Parameter) else NOTHING
        node = self.create_node("get_attr", name, (), {}, value, origin)
        self.known[id(tensor)] = (tensor, node)
        return node

    def _detached(self, tensor: Tensor) -> fx.Node:
        """A node for a tensor that a function torch cannot show us made of another, as `autograd.Variable(x)` does."""
        known = [other for other, _ in self.known.values() if isinstance(other, Tensor)]
        for other in (*reversed(known), *(other for _, other in _named_tensors(self.root))):
            if other.is_meta and _memory(other) == _memory(tensor):
                source = self.node_of(other)
                node = self.create_node("call_method", "detach", (source,), {}, tensor, self.origin[source])
                self.known[id(tensor)] = (tensor, node)
                return node
        raise FxpruneError(
            f"a tensor of shape {tuple(tensor.shape)} was made by a function that torch shows to no tracer, and its "
            "values are not known; where that is `torch.Tensor(size)`, write `torch.empty(size)`"
        )

    def number_node(self, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> fx.Node:
        """The node that computes a traced number."""
        if function is read_size:
            source, dim = operands
            after = self._last_after.get(source, source)
            if after.op == "placeholder":
                after = cast(fx.Node, self._last_placeholder)
            with self.graph.inserting_after(after):
                node = self.create_node("call_method", "size", (source, dim), {}, value, PARAMETERS)
            # Computed where the tensor is, so that a late use of a size does not keep the tensor alive.
            self._last_after[source] = node
            return node
        args, _, origin = self.lower_all(operands)
        return self.create_node("call_function", function, args, {}, value, origin)

    def size(self, node: fx.Node, dim: int, value: int) -> TracedInt:
        """The size of `node` in dimension `dim`."""
        size = self._sizes.get((node, dim))
        if size is None:
            size = self._sizes[node, dim] = traced_number(self, read_size, (node, dim), value)
        return size

    def number_of_elements(self, tensor: Tensor) -> Any:
        """How many entries a tensor has, computed by the graph from its sizes."""
        node = self.node_of(tensor)
        sizes = [self.size(node, i, size) for i, size in enumerate(tensor.shape)]
        return functools.reduce(operator.mul, sizes) if sizes else 1

    # -- lowering arguments: to what the graph takes, and to what runs on the meta device --

    def lower_all(self, args: Iterable[Any]) -> tuple[tuple[Any, ...], list[Any], int]:
        """`lower` of each, and the highest origin."""
        lowered = [self.lower(arg) for arg in args]
        return (
            tuple(symbolic for symbolic, _, _ in lowered),
            [concrete for _, concrete, _ in lowered],
            max((origin for _, _, origin in lowered), default=NOTHING),
        )

    def lower(self, arg: Any) -> tuple[Any, Any, int]:
        """What the graph takes for `arg`, what runs on the meta device for it, and what it is computed from."""
        kind = type(arg)
        if kind in _GRAPH_LITERALS:
            return arg, arg, NOTHING
        if isinstance(arg, Tensor):
            node = self.node_of(arg)
            return node, arg if arg.is_meta else node.meta["value"], self.origin[node]
        if isinstance(arg, TracedNumber):
            node = arg.node()
            return node, plain(arg), self.origin[node]
        if kind is torch.device:
            entry = self.known.get(id(arg))
            return (arg, META, NOTHING) if entry is None else (entry[1], META, self.origin[entry[1]])
        if kind is torch.dtype:
            return self._dtype_argument(arg), arg, NOTHING
        if isinstance(arg, TracedPieces) and self.takes_pieces:
            return arg.node, arg.untraced(), self.origin[arg.node]
        if isinstance(arg, (tuple, list)):
            items, values, origin = self.lower_all(arg)
            if hasattr(arg, "_fields"):
                value = cast(Any, kind)._make(values)
                node = self.create_node("call_function", kind, items, {}, value, origin)
                return node, value, origin
            if isinstance(arg, list):
                return list(items), values, origin
            return items, tuple(values), origin
        if kind is slice:
            (start, stop, step), values, origin = self.lower_all((arg.start, arg.stop, arg.step))
            return slice(start, stop, step), slice(*values), origin
        if dataclasses.is_dataclass(arg) and not isinstance(arg, type):
            given = {field.name: getattr(arg, field.name) for field in dataclasses.fields(arg)}
            kwargs, _, origin = self._lower_entries({name: value for name, value in given.items() if value is not None})
            return self.create_node("call_function", kind, (), kwargs, arg, origin), arg, origin
        if isinstance(arg, dict):
            return self._lower_entries(arg)
        if kind is range:
            return self.lower(list(arg))
        if kind is np.ndarray:
            return self.lower(torch.from_numpy(arg.copy()))
        arg = untraced_type(arg)
        if arg in _DTYPES:
            return _DTYPES[arg], arg, NOTHING
        if isinstance(arg, np.generic):
            return self.lower(arg.item())
        raise ForeignTypeError(f"an object of type `{kind.__module__}.{kind.__qualname__}` cannot be part of a graph")

    def lower_output(self, output: Any) -> tuple[Any, Any, int]:
        """`lower` of what the model returns; named entries that cannot be part of a graph are left out, with a note."""
        self._is_output = self.takes_pieces = True
        return self.lower(output)

    def _lower_entries(self, entries: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
        lowered = {}
        for name, value in entries.items():
            try:
                lowered[name] = self.lower(value)
            except ForeignTypeError as error:
                if not self._is_output:
                    raise
                self.notes.append(f"`{name}` is left out of what the model returns: {error}.")
        return (
            {name: symbolic for name, (symbolic, _, _) in lowered.items()},
            {name: concrete for name, (_, concrete, _) in lowered.items()},
            max((origin for _, _, origin in lowered.values()), default=NOTHING),
        )

    def _dtype_argument(self, dtype: torch.dtype) -> Any:
        # torch.dtype objects are singletons: a dtype that was read from a tensor is told from a literal one by the
        # function that uses it, which has to have read it from a tensor and not to name that dtype.
        code, node = self.dtypes.get(dtype, (None, None))
        if node is None or code is None:
            return dtype
        frame = user_frame()
        if frame is None or frame.f_code is not code or str(dtype).removeprefix("torch.") in code.co_names:
            return dtype
        if "float" in code.co_names and dtype is torch.float32:
            return dtype
        return self.part(getattr, node, "dtype", dtype)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same entries of the same memory, and for no others."""
    place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return *place, tensor.size(), tensor.stride(), tensor.dtype


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_buffers()
    yield from module.named_parameters()

"""Recording a forward pass as an fx graph: every torch call is run on the meta device and becomes a node.

The recorder is a `TorchFunctionMode`, so that models see *real* tensors (on the meta device) and real ints:
`isinstance`, `len`, `if x.ndim == 4`, factory functions and `torch.Size` all work as ever. What has to stay symbolic
is carried on the side: a tensor's node is found by the tensor's identity, a size is an `int` that knows how it was
computed (`TracedInt`) and becomes nodes only where a torch call takes it.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from fxprune import trees
from fxprune.errors import FxpruneError
from fxprune.tracing.constants import Place, place_of_tensor
from fxprune.tracing.guards import Guard
from fxprune.tracing.known_values import in_plain_types, layout_in_plain_types, restored, spelling
from fxprune.tracing.meta_results import META, call_key, leaf_key, recall, remember
from fxprune.tracing.node_targets import is_random, is_reflected, node_target
from fxprune.tracing.real_values import RealValues, is_count
from fxprune.tracing.sizes import (
    TracedInt,
    TracedNumber,
    TracedPieces,
    plain,
    read_size,
    traced_number,
    untraced_type,
)
from fxprune.tracing.special_calls import META_RUNS, SPECIAL_CALLS
from fxprune.tracing.traced_module import ApplyFunction, ByMode, DivideBySpectralNorm
from fxprune.tracing.user_code import user_frame

__all__ = ["DataDependentError", "Recorder"]


class DataDependentError(FxpruneError):
    """The model's Python code asked for the value of a tensor that depends on the input."""


class ForeignTypeError(FxpruneError):
    """An object that is neither a tensor nor a container of tensors was to become part of the graph."""


# --- the recorder -----------------------------------------------------------------------------------------------------

_GRAPH_LITERALS = frozenset(
    {int, float, str, bool, complex, type(None), type(...), torch.memory_format, torch.layout}
)  # fmt: skip
# What torch takes these types for.
_DTYPES: dict[Any, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool, complex: torch.complex128}
# Functions that give as many tensors as a size says, and where they have the dimension.
_CUTS = {"unbind": 1, "split": 2, "unsafe_split": 2}
# What they give is laid out by the values of lengths; it is that of the example.
_PACKING = frozenset({torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence})
# Functions that take however many tensors there are.
_JOINS = frozenset({torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack})
# What a node is computed from; the highest of its inputs. Values up to PARAMETERS can be had without an input.
_NOTHING, _PARAMETERS, _INPUTS = 0, 1, 2


class Recorder(TorchFunctionMode):
    """Records what `module` (on the meta device) does under `recording(recorder)` into `graph`.

    `real` gives the real tensor for the identity of a meta tensor, `leaf_clone` a real module for the path of a leaf,
    `values` what an earlier trace has read, which is not read again.
    """

    def __init__(
        self,
        module: nn.Module,
        is_leaf: Callable[[nn.Module, str], bool],
        real: dict[int, Tensor],
        leaf_clone: Callable[[str], nn.Module],
        device: torch.device,
        values: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.active = True
        self.thread = threading.get_ident()
        self.paths = {id(child): path for path, child in module.named_modules()}
        self.original_paths = frozenset(path for path, _ in module.named_modules(remove_duplicate=False))
        self.root = module
        self.is_leaf = is_leaf
        self.real = real
        self.device = device
        self.attributes = {id(tensor): name for name, tensor in _named_tensors(module)}
        # The tensor is kept with its node, so that its identity stays its own.
        self.known: dict[int, tuple[Any, fx.Node]] = {}
        self.origin: dict[fx.Node, int] = {}
        self.constants: dict[str, Tensor] = {}
        # Where the model keeps them, if it does.
        self.constant_places: dict[str, Place] = {}
        self.values = values
        # None for what does not go into plain types.
        self.values_read: dict[str, Any] = {}
        self.functions: dict[str, nn.Module] = {}
        self.training_readers: set[str] = set()
        self.scopes: dict[fx.Node, tuple[str, int]] = {}
        self.scope: list[tuple[str, int]] = [("", 0)]
        self.failed_in: str | None = None
        self.notes: list[str] = []
        self.guards: list[Guard] = []
        self.running_leaf = 0
        self._is_output = False
        self._takes_pieces = False
        self.example: dict[fx.Node, Any] = {}
        self._calls: dict[str, int] = {}
        self._sizes: dict[tuple[fx.Node, int], TracedInt] = {}
        self._last_after: dict[fx.Node, fx.Node] = {}
        self._last_placeholder: fx.Node | None = None
        self.dtypes: dict[torch.dtype, tuple[CodeType | None, fx.Node]] = {}
        self._real_values = RealValues(self.graph, self.example, self.constants, self.functions, real, leaf_clone)
        self._grad_region: tuple[fx.Node, fx.Node, int] | None = None
        self._differentiable = 0

    # -- nodes --

    def create_node(self, op: str, target: Any, args: Any, kwargs: Any, value: Any, origin: int) -> fx.Node:
        """A node with its value on the meta device, of the module that is being run."""
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta["value"] = value
        node.meta["module"] = self.scope[-1][0]
        self.scopes[node] = self.scope[-1]
        self.origin[node] = origin
        self._differentiable += origin >= _PARAMETERS
        return node

    def placeholder(self, name: str, meta_value: Any, real_value: Any) -> Any:
        """What the model is called with for its argument `name`."""
        node = self.create_node("placeholder", name, (), {}, meta_value, _INPUTS)
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
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name not in _CUTS or not isinstance(node.args[0], fx.Node):
            return None
        at, source = _CUTS[name], node.args[0]
        dim = node.kwargs.get("dim", node.args[at] if len(node.args) > at else 0)
        length = node.kwargs.get("split_size", node.args[1] if at == 2 and len(node.args) > 1 else 1)
        if not isinstance(dim, int) or not isinstance(length, (int, fx.Node)):
            return None
        shape = source.meta["value"].shape
        size = self.size(source, dim % len(shape), shape[dim])
        if isinstance(length, fx.Node):
            number = length.meta["value"]
            if not isinstance(number, int):
                return None
            length = traced_number(self, operator.pos, (number,), number)
            length.cached = node.args[1] if at == 2 and len(node.args) > 1 else node.kwargs["split_size"]
        return size if at == 1 else (size + (length - 1)) // length

    def from_behind(self, node: fx.Node, value: Tensor, index: int) -> Any:
        """A piece by its number from behind, which other sizes have too."""
        return self.adopt(value.detach(), self.part(operator.getitem, node, index, value))

    def guard(self, function: Callable[..., Any], operands: tuple[Any, ...], traced: Any) -> None:
        """From here on the recording supposes that `function(*operands)` is `traced`."""
        if self.active and not self.running_leaf and threading.get_ident() == self.thread:
            self.guards.append(Guard(function, operands, traced, self.scope[-1]))

    def create_check(self, check: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """A node that gives nothing and must not go."""
        self.create_node("call_function", check, args, {}, None, _INPUTS).meta["check"] = True

    def part(self, function: Callable[..., Any], node: fx.Node, key: Any, value: Any) -> fx.Node:
        """A node for an entry or an attribute of what another node gives."""
        layout = function is getattr and key in ("device", "dtype")
        origin = min(self.origin[node], _PARAMETERS) if layout else self.origin[node]
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
            name = f"_tensor_constant{len(self.constants)}"
            real = self.real.get(id(tensor), tensor)
            self.constants[name] = real.detach()
            place = place_of_tensor(self.root, tensor)
            if place is not None:
                self.constant_places[name] = place
            value, origin = tensor.detach().to(META), _NOTHING
        else:
            value, origin = tensor, _PARAMETERS if isinstance(tensor, nn.Parameter) else _NOTHING
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
            f"a tensor of shape {tuple(tensor.shape)} was made by a function that torch shows to no tracer, "
            "and its values are not known"
        )

    def number_node(self, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> fx.Node:
        """The node that computes a traced number."""
        if function is read_size:
            source, dim = operands
            after = self._last_after.get(source, source)
            if after.op == "placeholder":
                after = cast(fx.Node, self._last_placeholder)
            with self.graph.inserting_after(after):
                node = self.create_node("call_method", "size", (source, dim), {}, value, _PARAMETERS)
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
        """How many entries a tensor has, computed by the graph."""
        node = self.node_of(tensor)
        number = traced_number(self, Tensor.numel, (tensor,), tensor.numel())
        number.cached = self.create_node("call_method", "numel", (node,), {}, plain(number), _PARAMETERS)
        return number

    # -- lowering arguments: to what the graph takes, and to what runs on the meta device --

    def lower_all(self, args: Iterable[Any]) -> tuple[tuple[Any, ...], list[Any], int]:
        """`lower` of each, and the highest origin."""
        lowered = [self.lower(arg) for arg in args]
        return (
            tuple(symbolic for symbolic, _, _ in lowered),
            [concrete for _, concrete, _ in lowered],
            max((origin for _, _, origin in lowered), default=_NOTHING),
        )

    def lower(self, arg: Any) -> tuple[Any, Any, int]:
        """What the graph takes for `arg`, what runs on the meta device for it, and what it is computed from."""
        kind = type(arg)
        if kind in _GRAPH_LITERALS:
            return arg, arg, _NOTHING
        if isinstance(arg, Tensor):
            node = self.node_of(arg)
            return node, arg if arg.is_meta else node.meta["value"], self.origin[node]
        if isinstance(arg, TracedNumber):
            node = arg.node()
            return node, plain(arg), self.origin[node]
        if kind is torch.device:
            entry = self.known.get(id(arg))
            return (arg, META, _NOTHING) if entry is None else (entry[1], META, self.origin[entry[1]])
        if kind is torch.dtype:
            return self._dtype_argument(arg), arg, _NOTHING
        if isinstance(arg, TracedPieces) and self._takes_pieces:
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
        arg = untraced_type(arg)
        if arg in _DTYPES:
            return _DTYPES[arg], arg, _NOTHING
        if isinstance(arg, np.generic):
            return self.lower(arg.item())
        raise ForeignTypeError(f"an object of type `{kind.__module__}.{kind.__qualname__}` cannot be part of a graph")

    def lower_output(self, output: Any) -> tuple[Any, Any, int]:
        """`lower` of what the model returns; named entries that cannot be part of a graph are left out, with a note."""
        self._is_output = self._takes_pieces = True
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
            max((origin for _, _, origin in lowered.values()), default=_NOTHING),
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

    # -- calls --

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        special = SPECIAL_CALLS.get(func)
        if special is not None:
            return special(self, func, *args, **(kwargs or {}))
        if self.running_leaf or not self.active:
            return func(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Records the call of a torch function or tensor method."""
        try:
            return self._call(func, args, kwargs)
        except RuntimeError as error:
            if "cannot be called on meta tensors" not in str(error):
                raise
            # Whole numbers in tensors, among numbers: the paddings of `pad`, the sizes of `reshape`.
            args, kwargs = self._with_numbers(args), self._with_numbers(kwargs)
            return self._call(func, args, kwargs)

    def _with_numbers(self, arg: Any, nested: bool = False) -> Any:
        """The tensors of one whole number that are in tuples and lists of an argument, as numbers of the graph."""
        if isinstance(arg, dict):
            return {name: self._with_numbers(value, nested) for name, value in arg.items()}
        if type(arg) in (tuple, list):
            return type(arg)(self._with_numbers(item, True) for item in arg)
        if nested and isinstance(arg, Tensor) and not arg.dim() and not (arg.is_floating_point() or arg.is_complex()):
            return self._count(self.node_of(arg))
        return arg

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op, target, args, kwargs = node_target(func, args, kwargs)
        self._takes_pieces = target in _JOINS
        symbolic, values, origin = self.lower_all(args)
        self._takes_pieces = False
        names = list(kwargs)
        symbolic_kwargs, kwarg_values, kwarg_origin = self.lower_all(kwargs.values())
        value_kwargs = dict(zip(names, kwarg_values, strict=True))
        if value_kwargs.get("device") is not None or func in _constructors():
            value_kwargs["device"] = META
        if func is Tensor.to and len(values) > 1 and isinstance(values[1], str):
            values[1] = META
        run = target if is_reflected(func, target) else META_RUNS.get(func, func)
        return self.record(
            op, target, symbolic, dict(zip(names, symbolic_kwargs, strict=True)), max(origin, kwarg_origin),
            lambda: run(*values, **value_kwargs), (*values, *kwarg_values),
            call_key((func, tuple(names), *values, *value_kwargs.values())),
        )  # fmt: skip

    def record(
        self, op: str, target: Any, args: Any, kwargs: Any, origin: int, run: Callable[[], Any], inputs: Any,
        key: Any = None,
    ) -> Any:  # fmt: skip
        """Makes a node whose value is `run()`, or that of an earlier call with the same key."""
        tensors = trees.tensors(inputs)
        recalled = recall(key)
        if recalled is not None:
            value = recalled.value if recalled.same_as is None else tensors[recalled.same_as]
            node = self.create_node(op, target, args, kwargs, value, origin)
            self._note_mutation(node, [tensors[position] for position in recalled.written])
            self._note_random(node)
            return self.adopt(value, node)
        versions = [tensor._version for tensor in tensors]
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            value = run()
        except (NotImplementedError, RuntimeError) as error:
            if op == "call_module" or origin < _INPUTS or target in _PACKING:
                value = self._run_for_real(op, target, args, kwargs)
            elif _shape_is_unknown(error):
                raise DataDependentError(
                    f"the size of what `{getattr(target, '__name__', target)}` gives depends on the values of the input"
                ) from error
            else:
                raise
        finally:
            torch._C._set_grad_enabled(grad)
        mutated = [tensor for tensor, version in zip(tensors, versions, strict=True) if tensor._version != version]
        if not mutated and op != "call_module" and not trees.has_tensor(value) and (value is not None):
            if origin < _INPUTS and trees.tensors(inputs) and isinstance(value, (bool, int, float)):
                return self.concrete(self.create_node(op, target, args, kwargs, value, origin))
            return value
        node = self.create_node(op, target, args, kwargs, value, max(origin, _NOTHING))
        self._note_mutation(node, mutated)
        self._note_random(node)
        if any(tensor is value for tensor in mutated):
            # From here on the tensor is what this node made of it.
            remember(key, value, tensors, mutated)
        elif isinstance(value, Tensor) and (id(value) in self.known or id(value) in self.attributes):
            # The very tensor that came in: a name of its own, or the input would be taken for this node's output.
            value = node.meta["value"] = value.detach()
        elif not mutated or type(value) is Tensor:
            remember(key, value, tensors, mutated)
        return self.adopt(value, node)

    def _note_mutation(self, node: fx.Node, mutated: list[Tensor]) -> None:
        if mutated:
            node.meta["mutates"] = tuple(self.node_of(tensor).name for tensor in mutated)
            for tensor in mutated:
                self._outdate(tensor)
            self.origin[node] = _INPUTS

    def _note_random(self, node: fx.Node) -> None:
        if is_random(node):
            node.meta["random"] = True
            self.origin[node] = _INPUTS

    def _outdate(self, tensor: Tensor) -> None:
        """What may share memory with a changed tensor can no longer be computed from its node alone."""
        entry = self.known.get(id(tensor))
        stack = [] if entry is None else [entry[1]]
        while stack:
            node = stack.pop()
            if self.origin[node] < _INPUTS:
                self.origin[node] = _INPUTS
                stack.extend(node.all_input_nodes)
                stack.extend(node.users)

    def _run_for_real(self, op: str, target: Any, args: Any, kwargs: Any) -> Any:
        node = self.create_node(op, target, args, kwargs, None, _NOTHING)
        try:
            value = self.concrete(node, only_layout=True)
        finally:
            self.graph.erase_node(node)
        return trees.map_tensors(lambda tensor: tensor.detach().to(META), value)

    def call_module(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Records the call of a leaf as one node, and of any other module as what it does."""
        path = self.paths.get(id(module))
        if path is None or self.running_leaf or not self.active:
            return call(module, *args, **kwargs)
        if type(module) is nn.Identity and len(args) == 1 and not module._forward_hooks:
            return args[0]
        count = self._calls[path] = self._calls.get(path, -1) + 1
        self.scope.append((path, count))
        try:
            if path and (isinstance(module, (ByMode, ApplyFunction)) or self.is_leaf(module, path)):
                with torch._C.DisableTorchFunction():
                    return self._call_leaf(module, path, call, args, kwargs)
            return call(module, *args, **kwargs)
        except BaseException:
            if self.failed_in is None:
                self.failed_in = path
            raise
        finally:
            self.scope.pop()

    def _call_leaf(self, module: nn.Module, path: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        symbolic, values, origin = self.lower_all(args)
        symbolic_kwargs, kwarg_values, kwarg_origin = self.lower_all(kwargs.values())

        def run() -> Any:
            self.running_leaf += 1
            try:
                return call(module, *values, **dict(zip(kwargs, kwarg_values, strict=True)))
            finally:
                self.running_leaf -= 1

        origin = max(origin, kwarg_origin, _PARAMETERS)
        named = dict(zip(kwargs, symbolic_kwargs, strict=True))
        inputs = (*values, *kwarg_values)
        key = leaf_key(module, tuple(kwargs), inputs)
        return self.record("call_module", path, symbolic, named, origin, run, inputs, key)

    def apply_function(self, function: type[torch.autograd.Function], call: Callable[..., Any], args: Any) -> Any:
        """Records `function.apply(*args)`."""
        if self.running_leaf or not self.active:
            return call(*args)
        return self._call_made(f"_{function.__name__.lower()}", ApplyFunction(function), call, args)

    def divide_by_spectral_norm(self, hook: SpectralNorm, owner: nn.Module, do_power_iteration: bool) -> Any:
        """Records what the hook of `nn.utils.spectral_norm` makes of the weight of `owner`."""
        path = self.paths[id(owner)]
        name = f"{path}.{hook.name}_spectral_norm".removeprefix(".")
        made = DivideBySpectralNorm(hook).train(do_power_iteration)
        return self._call_made(name, made, made, [getattr(owner, hook.name + end) for end in ("_orig", "_u", "_v")])

    def _call_made(self, path: str, module: nn.Module, call: Callable[..., Any], args: Any) -> Any:
        """Records the call of a module that the graph has in addition to the model's own."""
        self.functions[path] = module
        with torch._C.DisableTorchFunction():
            symbolic, values, origin = self.lower_all(args)

            def run() -> Any:
                self.running_leaf += 1
                try:
                    return call(*values)
                finally:
                    self.running_leaf -= 1

            return self.record("call_module", path, symbolic, {}, origin, run, values)

    # -- real values --

    def concrete(self, node: fx.Node, only_layout: bool = False) -> Any:
        """The real value of a node that depends on parameters, buffers and constants only."""
        key = spelling(node)
        if self.values.get(key) is not None:
            self.values_read[key] = self.values[key]
            with torch._C.DisableTorchFunction():
                return restored(self.values[key])
        self.running_leaf += 1
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                value = self._real_values.of(node)
                self.values_read[key] = (layout_in_plain_types if only_layout else in_plain_types)(value)
                return value
        finally:
            self.running_leaf -= 1

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the input has no part in a tensor's values."""
        return self.origin[self.node_of(tensor)] < _INPUTS

    def read_value(self, func: Any, tensor: Tensor, *args: Any) -> Any:
        """`bool(tensor)`, `tensor.item()`, ...: answered where the input has no part in it."""
        if self.running_leaf or not self.active:
            return func(tensor, *args)
        node = self.node_of(tensor)
        if self.origin[node] >= _INPUTS:
            if func is Tensor.item and is_count(node):
                return self._count(node)
            raise DataDependentError(
                f"`{func.__name__}` asks for the value of a tensor that depends on the model's input"
                f" (node `{node.name}`, shape {tuple(tensor.shape)})"
            )
        if self.origin[node] == _PARAMETERS:
            self.notes.append(f"`{func.__name__}` of `{node.name}` in {self._where()} was taken as a constant.")
        with torch._C.DisableTorchFunction():
            return func(self.concrete(node), *args)

    def _where(self) -> str:
        """The module that is being run, for messages."""
        return f"`{self.scope[-1][0]}`" if self.scope[-1][0] else "the model itself"

    def _count(self, node: fx.Node) -> Any:
        """The number in `node`, computed by the graph; Python sees that of the example, as it does with sizes."""
        with torch._C.DisableTorchFunction():
            value = self.concrete(node).item()
        self.notes.append(
            f"`{node.name}` in {self._where()} is a number that the input gives; "
            "control flow that depends on it is that of the example input."
        )
        return self.adopt(value, self.create_node("call_method", "item", (node,), {}, value, _INPUTS))

    def set_grad_enabled(self, func: Any, enabled: bool) -> None:
        """Records regions without gradients, unless all that is computed in them has none anyway."""
        before = torch.is_grad_enabled()
        func(enabled)
        if enabled == before or self.running_leaf or not self.active:
            return
        if self._grad_region is None:
            saved = self.create_node("call_function", torch.is_grad_enabled, (), {}, before, _INPUTS)
            node = self.create_node("call_function", func, (enabled,), {}, None, _INPUTS)
            self._grad_region = (saved, node, self._differentiable)
            return
        saved, node, count = self._grad_region
        self._grad_region = None
        if self._differentiable == count:
            self.graph.erase_node(node)
            self.graph.erase_node(saved)
        else:
            self.create_node("call_function", func, (saved,), {}, None, _INPUTS)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same entries of the same memory, and for no others."""
    place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return *place, tensor.size(), tensor.stride(), tensor.dtype


def _shape_is_unknown(error: Exception) -> bool:
    """Whether a function failed on the meta device because its result has no size before it has values."""
    return any(name in repr(error) for name in _SIZED_BY_VALUES)


_SIZED_BY_VALUES = ("DynamicOutputShape", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "nms")


@functools.cache
def _constructors() -> frozenset[Any]:
    return frozenset(_device_constructors())


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_buffers()
    yield from module.named_parameters()

"""Recording a forward pass as an fx graph: every torch call is run on the meta device and becomes a node.

The recorder is a `TorchFunctionMode`, so that models see *real* tensors (on the meta device) and real ints:
`isinstance`, `len`, `if x.ndim == 4`, factory functions and `torch.Size` all work as ever. What has to stay symbolic
is carried on the side: a tensor's node is found by the tensor's identity, a size is an `int` that knows how it was
computed (`TracedInt`) and becomes nodes only where a torch call takes it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from fxprune.errors import FxpruneError
from fxprune.traced_module import ApplyFunction, ByMode

__all__ = ["DataDependentError", "Recorder", "TracedFloat", "TracedInt", "recording", "user_frame"]

META = torch.device("meta")
_OWN_FOLDERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep, "<")


class DataDependentError(FxpruneError):
    """The model's Python code asked for the value of a tensor that depends on the input."""


# --- numbers that know how they were computed -------------------------------------------------------------------------


class _TracedNumber:
    recorder: Recorder
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    cached: fx.Node | None

    def node(self) -> fx.Node:
        if self.cached is None:
            self.cached = self.recorder.number_node(self.function, self.operands, plain(self))
        return self.cached


class TracedInt(_TracedNumber, int):
    """An int that depends on the size of a tensor."""

    __hash__ = int.__hash__


class TracedFloat(_TracedNumber, float):
    """A float that depends on the size of a tensor."""

    __hash__ = float.__hash__


def plain(value: Any) -> Any:
    """The number without its history."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def _number(recorder: Recorder, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> Any:
    kind = {int: TracedInt, float: TracedFloat}.get(type(value))
    if kind is None:
        return value
    number = kind(value)
    number.recorder, number.function, number.operands, number.cached = recorder, function, operands, None
    return number


def _call_with_numbers(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """`function(*operands)`, remembered where an operand is a traced number."""
    value = function(*(_plain_nested(operand) for operand in operands))
    for operand in operands:
        for number in operand if isinstance(operand, (tuple, list)) else (operand,):
            if isinstance(number, _TracedNumber) and number.recorder.active:
                return _number(number.recorder, function, operands, value)
    return value


def _plain_nested(value: Any) -> Any:
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else plain(value)


def _arithmetic(name: str, function: Callable[..., Any], reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return _call_with_numbers(function, (other, self) if reflected else (self, other))

    method.__name__ = name
    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift"):
    for _class in (TracedInt, TracedFloat):
        setattr(_class, f"__{_name}__", _arithmetic(f"__{_name}__", getattr(operator, _name), False))
        setattr(_class, f"__r{_name}__", _arithmetic(f"__r{_name}__", getattr(operator, _name), True))
for _name, _function in {
    "neg": operator.neg, "abs": abs, "round": round, "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc,
}.items():  # fmt: skip
    for _class in (TracedInt, TracedFloat):
        setattr(_class, f"__{_name}__", functools.partialmethod(
            lambda self, *digits, function: _call_with_numbers(function, (self, *digits)), function=_function
        ))  # fmt: skip


class _IntLikeType(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, int)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, int)


class _TracingInt(int, metaclass=_IntLikeType):
    """Stands for the name `int` in the model's own source files: `int(size / 2)` would forget where it came from."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], _TracedNumber):
            return args[0] if isinstance(args[0], TracedInt) else _call_with_numbers(int, args)
        return int(*args, **kwargs)


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        numbers = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
        if not kwargs and any(isinstance(number, _TracedNumber) for number in numbers):
            return _call_with_numbers(function, args)
        return function(*args, **kwargs)

    return wrapper


_NUMBER_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    function: _remembering(function)
    for function in (
        math.sqrt, math.log, math.log2, math.log10, math.exp, math.pow, math.prod, math.isqrt, math.floor, math.ceil,
    )
}  # fmt: skip
_BUILTINS: dict[str, Any] = {"int": _TracingInt, "max": _remembering(max), "min": _remembering(min)}


# --- the recorder -----------------------------------------------------------------------------------------------------

_GRAPH_LITERALS = frozenset(
    {int, float, str, bool, complex, type(None), type(...), torch.memory_format, torch.layout}
)  # fmt: skip
# Tensor methods that an operator writes: recorded as the operator, which is what fx users look for.
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "matmul": operator.matmul, "neg": operator.neg, "add_": operator.iadd, "sub_": operator.isub,
    "mul_": operator.imul, "div_": operator.itruediv, "eq": operator.eq, "__eq__": operator.eq, "ne": operator.ne,
    "__ne__": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__invert__": operator.invert,
    "__floordiv__": operator.floordiv, "remainder": operator.mod, "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
}  # fmt: skip
_REFLECTED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod, "__rmatmul__": operator.matmul,
}  # fmt: skip
_REFLECTED_OPERATORS = frozenset(_REFLECTED.values())
_UNARY = frozenset({"neg", "__invert__"})
_RANDOM = frozenset({
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "exponential_", "random_", "dropout", "dropout1d", "dropout2d",
    "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "gumbel_softmax", "poisson", "rrelu",
    "scaled_dot_product_attention",
})  # fmt: skip
# What a node is computed from; the highest of its inputs. Values up to PARAMETERS can be had without an input.
_NOTHING, _PARAMETERS, _INPUTS = 0, 1, 2


class Recorder(TorchFunctionMode):
    """Records what `module` (on the meta device) does under `recording(recorder)` into `graph`.

    `real` gives the real tensor for the identity of a meta tensor, `leaf_clone` a real module for the path of a leaf.
    """

    def __init__(
        self,
        module: nn.Module,
        is_leaf: Callable[[nn.Module, str], bool],
        real: dict[int, Tensor],
        leaf_clone: Callable[[str], nn.Module],
        device: torch.device,
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
        self.leaf_clone = leaf_clone
        self.device = device
        self.attributes = {id(tensor): name for name, tensor in _named_tensors(module)}
        # The tensor is kept with its node, so that its identity stays its own.
        self.known: dict[int, tuple[Any, fx.Node]] = {}
        self.origin: dict[fx.Node, int] = {}
        self.constants: dict[str, Tensor] = {}
        self.functions: dict[str, nn.Module] = {}
        self.training_readers: set[str] = set()
        self.scopes: dict[fx.Node, tuple[str, int]] = {}
        self.scope: list[tuple[str, int]] = [("", 0)]
        self.failed_in: str | None = None
        self.notes: list[str] = []
        self.running_leaf = 0
        self.example: dict[fx.Node, Any] = {}
        self._calls: dict[str, int] = {}
        self._sizes: dict[tuple[fx.Node, int], TracedInt] = {}
        self._last_after: dict[fx.Node, fx.Node] = {}
        self._last_placeholder: fx.Node | None = None
        self._dtypes: dict[torch.dtype, tuple[CodeType | None, fx.Node]] = {}
        self._values: dict[fx.Node, Any] = {}
        self._grad_region: tuple[fx.Node, fx.Node, int] | None = None
        self._differentiable = 0

    # -- nodes --

    def create_node(self, op: str, target: Any, args: Any, kwargs: Any, value: Any, origin: int) -> fx.Node:
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
            number = _number(self, operator.pos, (value,), value)
            number.cached = node
            return number
        if isinstance(value, (tuple, list)) and _has_tensor(value):
            items = [self.adopt(item, self._part(operator.getitem, node, i, item)) for i, item in enumerate(value)]
            # Named tuples cannot be rebuilt from their items in general; their tensors are known all the same.
            return type(value)(items) if type(value) in (tuple, list) else value
        if isinstance(value, dict) and _has_tensor(list(value.values())):
            for key, item in value.items():
                self.adopt(item, self._part(operator.getitem, node, key, item))
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                item = getattr(value, field.name)
                if _has_tensor((item,)):
                    self.adopt(item, self._part(getattr, node, field.name, item))
        return value

    def _part(self, function: Callable[..., Any], node: fx.Node, key: Any, value: Any) -> fx.Node:
        return self.create_node("call_function", function, (node, key), {}, value, self.origin[node])

    def node_of(self, tensor: Tensor) -> fx.Node:
        entry = self.known.get(id(tensor))
        if entry is not None:
            return entry[1]
        name = self.attributes.get(id(tensor))
        if name is None:
            # Either a tensor that the model keeps as a plain attribute, or one made by a function torch cannot show us.
            name = f"_tensor_constant{len(self.constants)}"
            real = self.real.get(id(tensor), tensor)
            self.constants[name] = real.detach()
            value, origin = tensor.detach().to(META), _NOTHING
        else:
            value, origin = tensor, _PARAMETERS if isinstance(tensor, nn.Parameter) else _NOTHING
        node = self.create_node("get_attr", name, (), {}, value, origin)
        self.known[id(tensor)] = (tensor, node)
        return node

    def number_node(self, function: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> fx.Node:
        if function is _size_of:
            source, dim = operands
            after = self._last_after.get(source, source)
            if after.op == "placeholder":
                after = cast(fx.Node, self._last_placeholder)
            with self.graph.inserting_after(after):
                node = self.create_node("call_method", "size", (source, dim), {}, value, self.origin[source])
            # Computed where the tensor is, so that a late use of a size does not keep the tensor alive.
            self._last_after[source] = node
            return node
        args, _, origin = self.lower_all(operands)
        return self.create_node("call_function", function, args, {}, value, origin)

    def size(self, node: fx.Node, dim: int, value: int) -> TracedInt:
        size = self._sizes.get((node, dim))
        if size is None:
            size = self._sizes[node, dim] = _number(self, _size_of, (node, dim), value)
        return size

    # -- lowering arguments: to what the graph takes, and to what runs on the meta device --

    def lower_all(self, args: Iterable[Any]) -> tuple[tuple[Any, ...], list[Any], int]:
        lowered = [self.lower(arg) for arg in args]
        return (
            tuple(symbolic for symbolic, _, _ in lowered),
            [concrete for _, concrete, _ in lowered],
            max((origin for _, _, origin in lowered), default=_NOTHING),
        )

    def lower(self, arg: Any) -> tuple[Any, Any, int]:
        kind = type(arg)
        if kind in _GRAPH_LITERALS:
            return arg, arg, _NOTHING
        if isinstance(arg, Tensor):
            node = self.node_of(arg)
            return node, arg if arg.is_meta else node.meta["value"], self.origin[node]
        if isinstance(arg, _TracedNumber):
            node = arg.node()
            return node, plain(arg), self.origin[node]
        if kind is torch.device:
            entry = self.known.get(id(arg))
            return (arg, META, _NOTHING) if entry is None else (entry[1], META, self.origin[entry[1]])
        if kind is torch.dtype:
            return self._dtype_argument(arg), arg, _NOTHING
        if isinstance(arg, (tuple, list)):
            items, values, origin = self.lower_all(arg)
            if hasattr(arg, "_fields"):
                value = kind(*values)
                node = self.create_node("call_function", kind, items, {}, value, origin)
                return node, value, origin
            if isinstance(arg, list):
                return list(items), values, origin
            return items, tuple(values), origin
        if kind is slice:
            (start, stop, step), values, origin = self.lower_all((arg.start, arg.stop, arg.step))
            return slice(start, stop, step), slice(*values), origin
        if dataclasses.is_dataclass(arg) and not isinstance(arg, type):
            names = [field.name for field in dataclasses.fields(arg) if getattr(arg, field.name) is not None]
            items, _, origin = self.lower_all(getattr(arg, name) for name in names)
            kwargs = dict(zip(names, items))
            return self.create_node("call_function", kind, (), kwargs, arg, origin), arg, origin
        if isinstance(arg, dict):
            items, values, origin = self.lower_all(arg.values())
            return dict(zip(arg, items)), dict(zip(arg, values)), origin
        if kind is range:
            return self.lower(list(arg))
        if arg is _TracingInt:
            return int, int, _NOTHING
        if arg in (int, float, bool, complex):
            return {int: torch.int64, float: torch.get_default_dtype(), bool: torch.bool}.get(arg, arg), arg, _NOTHING
        raise FxpruneError(f"An argument of type `{kind.__module__}.{kind.__qualname__}` cannot be part of a graph.")

    def _dtype_argument(self, dtype: torch.dtype) -> Any:
        # torch.dtype objects are singletons: a dtype that was read from a tensor is told from a literal one by the
        # function that uses it, which has to have read it from a tensor and not to name that dtype.
        code, node = self._dtypes.get(dtype, (None, None))
        if node is None or code is None:
            return dtype
        frame = user_frame()
        if frame is None or frame.f_code is not code or str(dtype).removeprefix("torch.") in code.co_names:
            return dtype
        if "float" in code.co_names and dtype is torch.float32:
            return dtype
        return self._part(getattr, node, "dtype", dtype)

    # -- calls --

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self, func, *args, **(kwargs or {}))
        if self.running_leaf or not self.active:
            return func(*args, **(kwargs or {}))
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op, target, args, kwargs = _as_node_target(func, args, kwargs)
        symbolic, values, origin = self.lower_all(args)
        names = list(kwargs)
        symbolic_kwargs, kwarg_values, kwarg_origin = self.lower_all(kwargs.values())
        value_kwargs = dict(zip(names, kwarg_values))
        if value_kwargs.get("device") is not None or func in _constructors():
            value_kwargs["device"] = META
        if func is Tensor.to and len(values) > 1 and isinstance(values[1], str):
            values[1] = META
        run = target if target in _REFLECTED_OPERATORS and func.__name__ in _REFLECTED else _META_RUNS.get(func, func)
        return self.record(
            op, target, symbolic, dict(zip(names, symbolic_kwargs)), max(origin, kwarg_origin),
            lambda: run(*values, **value_kwargs), (*values, *kwarg_values),
            _key((func, tuple(names), *values, *value_kwargs.values())),
        )  # fmt: skip

    def record(
        self, op: str, target: Any, args: Any, kwargs: Any, origin: int, run: Callable[[], Any], inputs: Any,
        key: Any = None,
    ) -> Any:  # fmt: skip
        known = None if key is None else _results.get(key)
        if known is not None:
            node = self.create_node(op, target, args, kwargs, known.make(), origin)
            if known.random:
                node.meta["random"] = True
                self.origin[node] = _INPUTS
            return self.adopt(node.meta["value"], node)
        tensors = _tensors_in(inputs)
        versions = [tensor._version for tensor in tensors]
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            value = run()
        except (NotImplementedError, RuntimeError):
            if op == "call_module" or origin < _INPUTS:
                value = self._run_for_real(op, target, args, kwargs)
            else:
                raise
        finally:
            torch._C._set_grad_enabled(grad)
        mutated = [tensor for tensor, version in zip(tensors, versions) if tensor._version != version]
        if not mutated and op != "call_module" and not _has_tensor((value,)) and (value is not None):
            if origin < _INPUTS and _tensors_in(inputs) and isinstance(value, (bool, int, float)):
                return self.concrete(self.create_node(op, target, args, kwargs, value, origin))
            return value
        node = self.create_node(op, target, args, kwargs, value, max(origin, _NOTHING))
        if mutated:
            node.meta["mutates"] = True
            self.origin[node] = _INPUTS
            for tensor in mutated:
                if tensor is value or (op == "call_module" and value is tensor):
                    # From here on the tensor is what this node made of it.
                    self.known[id(tensor)] = (tensor, node)
                    return tensor
                self._outdate(tensor)
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if name in _RANDOM:
            node.meta["random"] = True
            self.origin[node] = _INPUTS
        if isinstance(value, Tensor) and (id(value) in self.known or id(value) in self.attributes):
            # The very tensor that came in: a name of its own, or the input would be taken for this node's output.
            value = node.meta["value"] = value.detach()
        elif key is not None and not mutated and len(_results) < _MOST_RESULTS:
            made = _layout(value)
            if made is not None:
                _results[key] = _Result(made, name in _RANDOM)
        return self.adopt(value, node)

    def _outdate(self, tensor: Tensor) -> None:
        entry = self.known.get(id(tensor))
        if entry is not None:
            self.origin[entry[1]] = max(self.origin[entry[1]], _INPUTS)

    def _run_for_real(self, op: str, target: Any, args: Any, kwargs: Any) -> Any:
        node = self.create_node(op, target, args, kwargs, None, _NOTHING)
        try:
            value = self.concrete(node, allow_inputs=True)
        finally:
            self.graph.erase_node(node)
        return _to_meta(value)

    def call_module(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
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
                return call(module, *values, **dict(zip(kwargs, kwarg_values)))
            finally:
                self.running_leaf -= 1

        origin = max(origin, kwarg_origin, _PARAMETERS)
        named = dict(zip(kwargs, symbolic_kwargs))
        inputs = (*values, *kwarg_values)
        key = _leaf_key(module, tuple(kwargs), inputs) if type(module).__module__.startswith("torch.nn.modules") else None
        return self.record("call_module", path, symbolic, named, origin, run, inputs, key)

    def apply_function(self, function: type[torch.autograd.Function], call: Callable[..., Any], args: Any) -> Any:
        if self.running_leaf or not self.active:
            return call(*args)
        name = f"_{function.__name__.lower()}"
        self.functions[name] = ApplyFunction(function)
        with torch._C.DisableTorchFunction():
            symbolic, values, origin = self.lower_all(args)
            return self.record("call_module", name, symbolic, {}, origin, lambda: call(*values), values)

    # -- real values --

    def concrete(self, node: fx.Node, allow_inputs: bool = False) -> Any:
        """The real value of a node that depends on parameters, buffers and constants only."""
        needed: dict[fx.Node, None] = {}
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in needed and current not in self._values:
                needed[current] = None
                stack.extend(current.all_input_nodes)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for current in [n for n in self.graph.nodes if n in needed]:
                self._values[current] = self._evaluate(current)
        return self._values[node]

    def _evaluate(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "placeholder":
            return self.example[node]
        if node.op == "get_attr":
            name = cast(str, node.target)
            value = self.constants[name] if name in self.constants else self.real[id(node.meta["value"])]
            if value.is_meta:
                raise FxpruneError(f"The value of `{name}` is needed, but the model is on the meta device.")
            return value
        if node.op == "call_module":
            return self.leaf_clone(cast(str, node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
        return cast(Callable[..., Any], node.target)(*args, **kwargs)

    def read_value(self, func: Any, tensor: Tensor, *args: Any) -> Any:
        """`bool(tensor)`, `tensor.item()`, ...: answered where the input has no part in it."""
        if self.running_leaf or not self.active:
            return func(tensor, *args)
        node = self.node_of(tensor)
        if self.origin[node] >= _INPUTS:
            raise DataDependentError(
                f"`{func.__name__}` asks for the value of a tensor that depends on the model's input"
                f" (node `{node.name}`, shape {tuple(tensor.shape)})"
            )
        if self.origin[node] == _PARAMETERS:
            self.notes.append(f"`{func.__name__}` of `{node.name}` in `{self.scope[-1][0]}` was taken as a constant.")
        with torch._C.DisableTorchFunction():
            return func(self.concrete(node), *args)

    def set_grad_enabled(self, func: Any, enabled: bool) -> None:
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


# --- results on the meta device, by the layout of the inputs ----------------------------------------------------------
# Torch runs many functions on the meta device in Python, for milliseconds; a network calls them with few layouts.

_MOST_RESULTS = 20_000


@dataclasses.dataclass(frozen=True)
class _Result:
    layout: Any
    random: bool

    def make(self) -> Any:
        return _empty(self.layout)


_results: dict[Any, _Result] = {}


def _layout(value: Any) -> Any:
    """(kind, layouts of the items) of a tuple or list, (sizes, strides, dtype) of a tensor; None for anything else."""
    if type(value) is Tensor:
        return value.size(), value.stride(), value.dtype
    if type(value) in (tuple, list):
        items = [_layout(item) for item in value]
        return None if None in items else (type(value), items)
    return None


def _empty(layout: Any) -> Any:
    if len(layout) == 2:
        return layout[0](map(_empty, layout[1]))
    size, stride, dtype = layout
    return torch.empty_strided(size, stride, dtype=dtype, device=META)


def _key(value: Any) -> Any:
    """What a result's layout depends on, hashable; None where that cannot be told."""
    try:
        key = _keyed(value)
        hash(key)
    except TypeError:
        return None
    return key


def _keyed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.size(), value.stride(), value.dtype
    kind = type(value)
    if kind in (tuple, list, torch.Size):
        return kind, tuple(map(_keyed, value))
    if kind is slice:
        return kind, _keyed(value.start), _keyed(value.stop), _keyed(value.step)
    if kind in (int, float, bool):
        return kind, value
    return value


def _leaf_key(module: nn.Module, names: tuple[str, ...], inputs: tuple[Any, ...]) -> Any:
    if module._modules or module._forward_hooks or module._forward_pre_hooks or getattr(module, "inplace", False):
        return None
    settings = [item for item in vars(module).items() if isinstance(item[1], (int, float, str, tuple))]
    tensors = [*module._parameters.values(), *module._buffers.values()]
    if vars(module)["training"] and module._buffers:
        return None
    return _key((type(module), names, *inputs, *map(tuple, settings), *tensors))


# --- the calls that are not simply recorded ---------------------------------------------------------------------------


def _size_of(node: fx.Node, dim: int) -> int:
    raise AssertionError("becomes a `size` node")


def _shape(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    node = recorder.node_of(tensor)
    return torch.Size([recorder.size(node, i, size) for i, size in enumerate(tensor.shape)])


def _size(recorder: Recorder, func: Any, tensor: Tensor, dim: int | None = None) -> Any:
    shape = _shape(recorder, lambda t: t.shape, tensor)
    return shape if dim is None else shape[dim]


def _numel(recorder: Recorder, func: Any, tensor: Tensor) -> Any:
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    node = recorder.node_of(tensor)
    number = _number(recorder, Tensor.numel, (tensor,), tensor.numel())
    number.cached = recorder.create_node("call_method", "numel", (node,), {}, plain(number), recorder.origin[node])
    return number


def _as_is(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _dtype(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    dtype = func(tensor)
    if not recorder.running_leaf and recorder.active:
        frame = user_frame()
        if frame is not None:
            recorder._dtypes[dtype] = (frame.f_code, recorder.node_of(tensor))
    return dtype


def _device(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    # A device object of its own for each reading: its identity tells which tensor it was read from.
    device = torch.device(recorder.device.type, recorder.device.index)
    node = recorder.node_of(tensor)
    recorder.known[id(device)] = (device, node)
    part: fx.Node = recorder._part(getattr, node, "device", device)
    recorder.known[id(device)] = (device, part)
    return device


def _set_grad_enabled(recorder: Recorder, func: Any, enabled: bool) -> None:
    recorder.set_grad_enabled(func, enabled)


def _read_value(recorder: Recorder, func: Any, tensor: Tensor, *args: Any) -> Any:
    return recorder.read_value(func, tensor, *args)


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


_SPECIAL: dict[Any, Callable[..., Any]] = {
    _getter("shape"): _shape, Tensor.size: _size, Tensor.numel: _numel, Tensor.nelement: _numel,
    _getter("dtype"): _dtype, _getter("device"): _device, _getter("ndim"): _as_is, Tensor.dim: _as_is,
    torch._C._set_grad_enabled: _set_grad_enabled, torch.numel: _numel,
    **dict.fromkeys([_getter(name) for name in (
        "is_cuda", "is_meta", "requires_grad", "layout", "is_sparse", "is_quantized", "grad", "grad_fn", "is_leaf",
        "is_cpu", "is_mps", "is_nested", "itemsize", "_version",
    )], _as_is),
    Tensor.is_contiguous: _as_is, Tensor.is_floating_point: _as_is, Tensor.is_complex: _as_is,
    Tensor.requires_grad_: _as_is, torch.is_floating_point: _as_is,
    **dict.fromkeys([
        Tensor.__bool__, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist, Tensor.numpy,
        torch.is_nonzero,
    ], _read_value),
}  # fmt: skip
# Calls that cannot run on the meta device as they are.
_META_RUNS: dict[Any, Callable[..., Any]] = {
    Tensor.cpu: lambda tensor, **_: tensor, Tensor.cuda: lambda tensor, *_, **__: tensor,
    Tensor.pin_memory: lambda tensor, *_, **__: tensor,
}  # fmt: skip


@functools.cache
def _constructors() -> frozenset[Any]:
    return frozenset(_device_constructors())


@functools.cache
def _canonical(func: Any) -> tuple[str, Any]:
    """The op and target of a torch function; builtin functions of torch have several objects under one name."""
    name = func.__name__
    if name == "__get__":
        return "attribute", func.__self__.__name__
    if torch.overrides.is_tensor_method_or_property(func):
        return "call_method", name
    for namespace in (torch, nn.functional):
        if getattr(namespace, name, None) == func:
            return "call_function", getattr(namespace, name)
    return "call_function", func


def _as_node_target(func: Any, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    op, target = _canonical(func)
    if op == "attribute":
        return "call_function", getattr, (args[0], target), kwargs
    if op == "call_method":
        if not kwargs and len(args) == (1 if target in _UNARY else 3 if target == "__setitem__" else 2):
            if target in _OPERATORS:
                return "call_function", _OPERATORS[target], args, kwargs
            if target in _REFLECTED:
                return "call_function", _REFLECTED[target], (args[1], args[0]), kwargs
        return op, target, args, kwargs
    return op, target, args, kwargs


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_buffers()
    yield from module.named_parameters()


def _tensors_in(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(_tensors_in(value))
        elif isinstance(value, dict):
            found.extend(_tensors_in(value.values()))
    return found


def _has_tensor(values: Any) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            return True
        if isinstance(value, (tuple, list)) and _has_tensor(value):
            return True
        if isinstance(value, dict) and _has_tensor(value.values()):
            return True
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and _has_tensor(vars(value).values()):
            return True
    return False


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(META)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(map(_to_meta, value))
    if type(value) is dict:
        return {key: _to_meta(item) for key, item in value.items()}
    return value


# --- where the model's own code is ------------------------------------------------------------------------------------


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_FOLDERS):
        frame = frame.f_back
    return frame


_patches_of_module: dict[int, tuple[ModuleType, dict[str, Any]]] = {}


def _patches(module: ModuleType) -> dict[str, Any]:
    """Names in a source file of the model that have to mean something else while it is traced."""
    known = _patches_of_module.get(id(module))
    if known is not None and known[0] is module:
        return known[1]
    patches: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, functools._lru_cache_wrapper):
            # A cache that outlives the trace must not be filled with what belongs to it.
            patches[name] = value.__wrapped__
        elif type(value) is type(math.sqrt) and value in _NUMBER_FUNCTIONS:
            patches[name] = _NUMBER_FUNCTIONS[value]
    for name, replacement in _BUILTINS.items():
        if name not in vars(module):
            patches[name] = replacement
    _patches_of_module[id(module)] = (module, patches)
    return patches


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Everything that the recorder's module does in this context, in this thread, is recorded."""
    packages = {type(module).__module__.partition(".")[0] for module in recorder.root.modules()} - {"torch", "fxprune"}
    original_call = nn.Module.__call__
    original_apply = torch.autograd.Function.__dict__["apply"]
    script_call = torch._C.ScriptFunction.__call__

    def mine() -> bool:
        return recorder.active and threading.get_ident() == recorder.thread

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not mine():
            return original_call(module, *args, **kwargs)
        return recorder.call_module(module, original_call, args, kwargs)

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original_apply.__get__(None, function)
        return recorder.apply_function(function, bound, args) if mine() and not kwargs else bound(*args, **kwargs)

    def call_scripted(function: Any, *args: Any, **kwargs: Any) -> Any:
        # The Python source of a scripted function is as good to trace as any other.
        source = getattr(function, "_torchdynamo_inline", None)
        if mine() and not recorder.running_leaf and source is not None:
            return source(*args, **kwargs)
        return script_call(function, *args, **kwargs)

    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, value)

        for module in [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in packages]:
            for name, value in _patches(module).items() if isinstance(module, ModuleType) else ():
                if name in vars(module):
                    stack.callback(vars(module).__setitem__, name, vars(module)[name])
                else:
                    stack.callback(vars(module).pop, name, None)
                vars(module)[name] = value
        for function, replacement in _NUMBER_FUNCTIONS.items():
            replace(math, function.__name__, replacement)
        replace(nn.Module, "__call__", call)
        replace(torch.autograd.Function, "apply", classmethod(apply))
        if "__call__" in vars(torch._C.ScriptFunction):
            replace(torch._C.ScriptFunction, "__call__", call_scripted)
        stack.callback(delattr, nn.Module, "training")
        nn.Module.training = _TrainingFlag(recorder, mine)  # type: ignore[assignment]
        stack.callback(setattr, recorder, "active", False)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(recorder)
        yield


class _TrainingFlag:
    """Sees who reads `self.training`; a data descriptor goes before the instance's own attribute."""

    def __init__(self, recorder: Recorder, mine: Callable[[], bool]) -> None:
        self.recorder = recorder
        self.mine = mine

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            raise AttributeError("training")
        if self.mine() and not self.recorder.running_leaf:
            path = self.recorder.paths.get(id(module))
            if path is not None:
                self.recorder.training_readers.add(path)
        return module.__dict__["training"]

    def __set__(self, module: nn.Module, value: Any) -> None:
        module.__dict__["training"] = value


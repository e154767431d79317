"""The GraphModule that `trace` returns, whose copies and pickles are complete; and modules that only graphs have."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm

from fxprune.running.copies import copy_module
from fxprune.running.deepcopy import deepcopy
from fxprune.running.mode_blocks import with_mode_blocks
from fxprune.running.regions import has_region_blocks, with_region_blocks
from fxprune.tracing.loops import with_loop_blocks
from fxprune.tracing.rolling import has_loops, roll
from fxprune.tracing.signature import SignatureCodeGen, signature_of

__all__ = [
    "ApplyFunction",
    "ByMode",
    "DivideBySpectralNorm",
    "DrawNumbers",
    "TracedModule",
    "copy_graph",
    "copy_to_run",
]


class ByMode(nn.Module):
    """A literal that depends on the mode: calling it returns `train_value` in training and `eval_value` otherwise."""

    def __init__(self, train_value: Any, eval_value: Any) -> None:
        super().__init__()
        self.train_value = train_value
        self.eval_value = eval_value

    def forward(self) -> Any:
        """The value for the current mode."""
        return self.train_value if self.training else self.eval_value

    def extra_repr(self) -> str:
        """The settings that `print` shows."""
        return f"train_value={self.train_value!r}, eval_value={self.eval_value!r}"


class ApplyFunction(nn.Module):
    """Calls `function.apply`: code generated from a graph has no name for an autograd.Function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """`function.apply(*args)`."""
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        """The settings that `print` shows."""
        return str(self.function.__name__)


class DrawNumbers(ApplyFunction):
    """Calls a helper that draws random numbers from NumPy, as SpecAugment's mask; a tensor in place of its array."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the helper gives for these numbers."""
        return torch.from_numpy(self.function(*args, **kwargs))


class DivideBySpectralNorm(nn.Module):
    """What the hook of `nn.utils.spectral_norm` does with a weight; in training it updates `u` and `v` in place."""

    def __init__(self, hook: SpectralNorm) -> None:
        super().__init__()
        self.hook = hook

    def forward(self, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The weight divided by its largest singular value, estimated from the singular vectors `u` and `v`."""
        name = self.hook.name
        owner: Any = SimpleNamespace(**{f"{name}_orig": weight, f"{name}_u": u, f"{name}_v": v})
        return self.hook.compute_weight(owner, do_power_iteration=self.training)


@dataclass(frozen=True)
class _Ref:
    index: int


@dataclass(frozen=True)
class _Function:
    module: str
    name: str


@dataclass(frozen=True)
class _Operator:
    name: str


@dataclass(frozen=True)
class _Packed:
    parts: tuple[Any, ...]


def _packed_apart(value: Any, out: bool) -> Any:
    """Packed sequences on the meta device as their parts, which can be pickled, or these put together."""
    if type(value) in (tuple, list):
        return type(value)(_packed_apart(item, out) for item in value)
    if out:
        return _Packed(tuple(value)) if isinstance(value, PackedSequence) else value
    return tuple.__new__(PackedSequence, value.parts) if isinstance(value, _Packed) else value


def _meta(meta: dict[str, Any], *, out: bool) -> dict[str, Any]:
    return {name: _packed_apart(value, out) if name == "value" else value for name, value in meta.items()}


def _named(target: Any) -> Any:
    """What is pickled for a node's target: `F.max_pool2d`, for one, cannot be found under its own name."""
    if isinstance(target, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        return _Operator(str(target))
    if "<locals>" not in getattr(target, "__qualname__", ""):
        return target
    own = _Function(str(target.__module__), str(getattr(target, "__name__", "")))
    return own if getattr(sys.modules.get(own.module), own.name, None) is target else target


def _of_name(target: Any) -> Any:
    if isinstance(target, _Operator):
        return functools.reduce(getattr, target.name.split("."), torch.ops)
    return getattr(importlib.import_module(target.module), target.name) if isinstance(target, _Function) else target


class TracedModule(fx.GraphModule):
    """A GraphModule whose copies are complete.

    `fx.GraphModule` rebuilds itself from what its graph refers to: its deepcopy makes non-persistent buffers of the
    root persistent (new state_dict keys), and its pickle re-traces the code, which fails on `torch.arange(size)`.
    Here both copy every attribute and the graph with its `node.meta`.
    """

    @classmethod
    def assemble(cls, root: nn.Module, graph: fx.Graph, class_name: str) -> TracedModule:
        """A TracedModule that owns the parameters, buffers and submodules of `root`, in the same order."""
        traced = cls(nn.Module(), fx.Graph(), class_name)
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"):
            traced.__dict__[name] = root.__dict__[name]
        traced.graph = graph
        return traced

    def recompile(self) -> Any:
        """Make the code of the graph again: regions are `with` blocks, modes `if` blocks and loops over sizes `for`."""
        graph = self._graph
        if has_loops(graph):
            self._graph = copy_graph(graph)
            roll(self._graph)
        written = self._graph

        def transform(body: list[str]) -> list[str]:
            body = with_mode_blocks(written, body)
            body = with_region_blocks(body) if has_region_blocks(written) else body
            return body if written is graph else with_loop_blocks(body)

        written.on_generate_code(lambda before: before or transform)
        try:
            code = super().recompile()
            if written is not graph:
                # Its nodes are not those of the lines, where torch.compile looks for their `meta`.
                self._lineno_map: dict[int, int | None] = {}
            return code
        finally:
            self._graph = graph

    def _attributes(self) -> dict[str, Any]:
        # Assigning the graph generates the code again.
        return {name: value for name, value in self.__dict__.items() if name not in ("_graph", "_code")}

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModule:
        traced = TracedModule(nn.Module(), fx.Graph(), type(self).__name__)
        memo[id(self)] = traced
        traced.__dict__.update(deepcopy(self._attributes(), memo))
        traced.graph = _load_graph(_dump_graph(self.graph))
        return traced

    def __reduce__(self) -> tuple[Callable[..., TracedModule], tuple[Any, ...]]:
        return _rebuild, (type(self).__name__, self._attributes(), _dump_graph(self.graph))


def copy_to_run(model: nn.Module) -> nn.Module:
    """A copy with tensors and parts of its own; of a traced model it shares graph and code, which must not change."""
    if not isinstance(model, TracedModule):
        return copy_module(model)
    copied: TracedModule = object.__new__(type(model))
    memo: dict[int, Any] = {id(model): copied}
    parts = {name: None if part is None else copy_module(part, memo) for name, part in model._modules.items()}
    tensors = {name: deepcopy(vars(model)[name], memo) for name in ("_parameters", "_buffers")}
    vars(copied).update({**vars(model), **tensors, "_modules": parts})
    return copied


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph, with the names of its nodes and their `meta`."""
    return _load_graph(_dump_graph(graph))


def _rebuild(class_name: str, attributes: dict[str, Any], dumped: _Dumped) -> TracedModule:
    traced = TracedModule(nn.Module(), fx.Graph(), class_name)
    traced.__dict__.update(attributes)
    traced.graph = _load_graph(dumped)
    return traced


# The signature of the graph's forward, and its nodes.
_Dumped: TypeAlias = "tuple[inspect.Signature | None, list[tuple[Any, ...]]]"


def _dump_graph(graph: fx.Graph) -> _Dumped:
    index = {node: i for i, node in enumerate(graph.nodes)}

    def refer(arg: Any) -> Any:
        return fx.node.map_aggregate(arg, lambda leaf: _Ref(index[leaf]) if isinstance(leaf, fx.Node) else leaf)  # type: ignore[arg-type, return-value]

    rows = []
    for node in graph.nodes:
        meta = _meta(node.meta, out=True)
        rows.append((node.op, _named(node.target), refer(node.args), refer(node.kwargs), node.name, node.type, meta))
    return signature_of(graph), rows


def _load_graph(dumped: _Dumped) -> fx.Graph:
    graph = fx.Graph()
    signature, rows = dumped
    if signature is not None:
        graph.set_codegen(SignatureCodeGen(signature))
    nodes: list[fx.Node] = []

    def restore(leaf: Any) -> Any:
        return nodes[leaf.index] if isinstance(leaf, _Ref) else leaf

    def resolve(arg: Any) -> Any:
        return fx.node.map_aggregate(arg, restore)

    for op, target, args, kwargs, name, type_expr, meta in rows:
        node = graph.create_node(op, _of_name(target), resolve(args), resolve(kwargs), name, type_expr)
        node.meta.update(_meta(meta, out=False))
        nodes.append(node)
    return graph

"""Records a forward pass: every torch call runs on the meta device and becomes a node of an fx graph.

The recorder is a `TorchFunctionMode`, so that models see *real* tensors (on the meta device) and real ints:
`isinstance`, `len`, `if x.ndim == 4`, factory functions and `torch.Size` work as always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from types import CodeType, FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Target
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from fxprune.errors import FxpruneError
from fxprune.ops import Trait, name_of_op, names_with
from fxprune.running import trees
from fxprune.running.copies import META
from fxprune.running.randomness import NotesDraws
from fxprune.tracing.aten import as_function
from fxprune.tracing.facts import Facts
from fxprune.tracing.graph_builder import GraphBuilder, Origin
from fxprune.tracing.limits import CallPlace, Limits, limit_of
from fxprune.tracing.lowering import LoweredCall, Lowering
from fxprune.tracing.meta_results import META_RUNS, call_key, recall, remember
from fxprune.tracing.node_targets import is_reflected, node_target
from fxprune.tracing.real_values import DataDependentError, RealValues
from fxprune.tracing.regions import Regions
from fxprune.tracing.results import Results
from fxprune.tracing.scopes import ModuleCall, Scopes, Switch
from fxprune.tracing.size_nodes import SizeNodes
from fxprune.tracing.unknown import Unknown
from fxprune.tracing.user_code import Place

__all__ = ["Recorder", "SpecialCall"]

# Takes the place of recording a call: it is called with the recorder, the function and the function's arguments.
SpecialCall: TypeAlias = Callable[..., Any]

# The layout of what they give depends on the values of lengths; it is that of the example.
_PACKING = frozenset({torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence})


class Recorder(TorchFunctionMode):
    """Records the calls of torch functions.

    Attributes:
        device: that of the model's input.
        switch: whether calls are recorded now.
        scopes: the module calls in progress.
        builder: the graph.
        sizes: nodes of sizes and of numbers computed from them.
        lowering: arguments, made ready for the graph.
        results: what the model gets back.
        values: real values of nodes.
        regions: contexts that the model enters, as `torch.autocast`.
        assumes_autocast: whether the model was told that it is in autocast, to see how it leaves that.
        facts: what the model's code has asked besides sizes and values.
        refused: the first error of the tracer, which the model's code may catch.
        inference_modes: those that the model has entered, whether they are on.
        ranks: the nodes of tensors whose number of dimensions was read, with the module call that did first.
        training: whether the model is in training.
    """

    def __init__(
        self,
        root: nn.Module,
        real: Mapping[int, Tensor],
        inputs: Mapping[str, Any],
        *,
        device: torch.device,
        real_module: Callable[[str], nn.Module],
        earlier_values: Mapping[str, Any],
        special_calls: Mapping[Any, SpecialCall],
        training: bool = False,
        other_answer: str | None = None,
        otherwise: AbstractSet[Place] = frozenset(),
        counters: AbstractSet[str] = frozenset(),
        earlier: GraphBuilder | None = None,
        by_values: bool = False,
        types: Mapping[CallPlace, CodeType | None] | None = None,
    ) -> None:
        """Args:
        root: the model on the meta device.
        real: the real tensor for the identity of each of its tensors.
        inputs: what it is called with, by the name of the placeholder.
        device: what the model's code sees as the device of its tensors.
        real_module: gives a real module for its path.
        earlier_values: what an earlier trace of the model has read of its values.
        special_calls: what is done in place of recording a call, by function.
        training: whether the model is in training.
        other_answer: as for `Facts`.
        otherwise: as for `SizeNodes`.
        counters: as for `RealValues`.
        earlier: of the call before, where that has left its tensors in the model.
        by_values: whether tensors may be as large as values of the input say, and conditions be those of the example.
        types: as for `Lowering`.
        """
        super().__init__()
        self.device = device
        self.switch = Switch()
        self.scopes = Scopes(root)
        self.builder = GraphBuilder(root, real, self.scopes, earlier)
        self.sizes = SizeNodes(self.builder, self.switch, otherwise)
        self.lowering = Lowering(self.builder, types or {})
        self.results = Results(self.builder, self.sizes)
        self.values = RealValues(
            self.builder, self.sizes, self.switch, real, inputs, real_module, earlier_values, training, counters,
            by_values,
        )  # fmt: skip
        self.regions = Regions(self.builder, self.lowering)
        self.assumes_autocast = False
        self.training = training
        self.facts = Facts(self.builder, other_answer, training)
        self.refused: Exception | None = None
        self.inference_modes: list[bool] = []
        self.ranks: dict[fx.Node, ModuleCall] = {}
        self.note_length = self.builder.note_length
        self._special_calls = special_calls
        self._by_values = by_values

    def first_refusal(self) -> Exception | None:
        """The first error that the model's code was given; it may have caught it."""
        raised = (error for error in self.builder.deferred if error.__traceback__ is not None)
        return self.refused or next(raised, None)

    def note_rank(self, tensor: Tensor) -> None:
        """The code has asked how many dimensions a tensor has."""
        if self.switch.on:
            self.ranks.setdefault(self.builder.node_of(tensor), self.scopes.current)

    def note_limits(self, found: Any, dtype: torch.dtype, frame: FrameType) -> Any:
        """What a frame of the model's code gets for the limits of a type, which it may have read from a tensor."""
        node = self.lowering.source_of_limits(dtype, frame) if self.switch.on else None
        if node is None:
            return found
        return Limits(found, functools.partial(self.limit, node))

    def limit(self, node: fx.Node, name: str, value: float) -> Any:
        """The number that a limit of the type of a tensor is."""
        return self.sizes.number_of(self.builder.create_part(limit_of, node, name, value), value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.switch.on:
            return func(*args, **kwargs)
        special = self._special_calls.get(func)
        function = None if special is not None else as_function(func)
        try:
            if special is not None:
                return special(self, func, *args, **kwargs)
            if function is not None:
                with self:
                    return function(*args, **kwargs)
            return self.call(func, args, kwargs)
        except (FxpruneError, NotImplementedError) as error:
            self.refused = self.refused or error
            raise

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the call of a torch function or tensor method."""
        try:
            return self._call(func, args, kwargs)
        except DataDependentError as error:
            if func not in _MAY_BE_UNKNOWN:
                raise
            error.module, _ = self.scopes.current
            self.builder.deferred.append(error.with_traceback(None))
            return Unknown(error)
        except RuntimeError as error:
            if "cannot be called on meta tensors" not in str(error):
                self._tie_to(args, kwargs)
                raise
        # Whole numbers in tensors, among numbers: the paddings of `pad`, the sizes of `reshape`, bounds of slices.
        try:
            return self._call(func, self._with_numbers(args), self._with_numbers(kwargs))
        except RuntimeError as error:
            if "cannot be called on meta tensors" not in str(error):
                raise
        # Or in place of a number, as the dimension of `squeeze`.
        return self._call(func, (*args[:1], *self._with_numbers(args[1:], True)), self._with_numbers(kwargs, True))

    def _tie_to(self, *args: Any) -> None:
        """A call has failed; where the code goes on all the same, it does so for these sizes of what was given."""
        for tensor in trees.tensors(args):
            self.note_rank(tensor)
            node = self.builder.node_of(tensor)
            for dim, size in enumerate(tensor.shape):
                self.sizes.size(node, dim, size).as_traced()

    def _with_numbers(self, arg: Any, nested: bool = False) -> Any:
        """The tensors of one whole number that are in tuples, lists and slices, as numbers of the graph."""
        if isinstance(arg, dict):
            return {name: self._with_numbers(value, nested) for name, value in arg.items()}
        if type(arg) in (tuple, list):
            return type(arg)(self._with_numbers(item, True) for item in arg)
        if type(arg) is slice:
            return slice(*(self._with_numbers(bound, True) for bound in (arg.start, arg.stop, arg.step)))
        if nested and isinstance(arg, Tensor) and not arg.dim() and not (arg.is_floating_point() or arg.is_complex()):
            return self.values.whole_number(arg)
        return arg

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        op, target, args, kwargs = node_target(func, args, kwargs)
        lowered = self.lowering.lower_call(args, kwargs, pieces=name_of_op(target) in names_with(Trait.JOIN))
        values, named = lowered.values, lowered.named_values
        if named.get("device") is not None or func in _constructors():
            named = {**named, "device": META}
        if func is Tensor.to and len(values) > 1 and isinstance(values[1], str):
            values = [values[0], META, *values[2:]]
        run = target if is_reflected(func, target) else META_RUNS.get(func, func)
        key = call_key(func, (tuple(kwargs), *values, *named.values()))
        return self.record(op, target, lowered, lambda: run(*values, **named), key)

    def record(self, op: str, target: Target, call: LoweredCall, run: Callable[[], Any], key: Any = None) -> Any:
        """Make a node whose value is `run()`, or that of an earlier call with the same key."""
        tensors = trees.tensors(call.all_values)
        recalled = recall(key)
        if recalled is not None:
            value = recalled.value if recalled.same_as is None else tensors[recalled.same_as]
            written = [tensors[position] for position in recalled.written]
            node = self._create_node(op, target, call, value, written, recalled.random)
            return self.results.adopt(value, node)
        versions = [tensor._version for tensor in tensors]
        value, draws = self._run(op, target, call, run)
        if draws is None:
            # Computed from real values, and others may give another layout.
            key = None
        if type(value) is Tensor and not value.is_meta:
            # Of numbers alone, as `torch.div(7, 2)`: no layout of what is made with it may depend on its value.
            value = value.to(META)
        random = draws is not None and draws.drawn
        written = [tensor for tensor, version in zip(tensors, versions, strict=True) if tensor._version != version]
        if not written and op != "call_module" and value is not None and not trees.has_tensor(value):
            if call.origin < Origin.INPUTS and tensors and isinstance(value, (bool, int, float)):
                return self.values.of(self._create_node(op, target, call, value, []))
            return value
        node = self._create_node(op, target, call, value, written, random)
        if draws is None and call.origin == Origin.INPUTS:
            node.meta["by_values"] = True
        if any(tensor is value for tensor in written):
            # From here on the tensor is what this node made of it.
            remember(key, value, tensors, written, random)
        elif isinstance(value, Tensor) and self.builder.is_taken(value):
            # The very tensor that came in: under its own identity the input would be taken for this node's output.
            value = node.meta["value"] = value.detach()
        elif not written or type(value) is Tensor:
            remember(key, value, tensors, written, random)
        return self.results.adopt(value, node)

    def _create_node(
        self, op: str, target: Target, call: LoweredCall, value: Any, written: list[Tensor], random: bool = False
    ) -> fx.Node:
        # The `forward` of an autograd.Function computes no gradients: what it writes into a buffer has none.
        into_state = self.regions.inlined and any(map(self.builder.is_named, written))
        with self.regions.without_grad() if into_state else nullcontext():
            node = self.builder.create_node(op, target, call.args, call.kwargs, value, call.origin)
        if written:
            node.meta["mutates"] = tuple(self.builder.node_of(tensor).name for tensor in written)
            for tensor in written:
                self.builder.mark_written(tensor)
            self.builder.origin[node] = Origin.INPUTS
        if random:
            node.meta["random"] = True
            self.builder.origin[node] = Origin.INPUTS
        return node

    def _run(self, op: str, target: Target, call: LoweredCall, run: Callable[[], Any]) -> tuple[Any, NotesDraws | None]:
        """What a call gives on the meta device, computed with real values where it does not run there.

        Returns:
            That, and whether a function drew random numbers; None where it was computed with real values. What a module
            draws is known by its class.
        """
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            if op == "call_module":
                return run(), NotesDraws()
            with NotesDraws() as draws:
                return run(), draws
        except (NotImplementedError, RuntimeError) as error:
            if op == "call_module" or call.origin < Origin.INPUTS or target in _PACKING:
                return self._run_for_real(op, target, call), None
            if not _has_unknown_size(error):
                raise
            if self._by_values:
                return self._run_for_real(op, target, call, by_values=True), None
            raise DataDependentError(
                f"the size of what `{getattr(target, '__name__', target)}` gives depends on the values of the input"
            ) from error
        finally:
            torch._C._set_grad_enabled(grad)

    def _run_for_real(self, op: str, target: Target, call: LoweredCall, *, by_values: bool = False) -> Any:
        node = self.builder.create_node(op, target, call.args, call.kwargs, None, Origin.CONSTANTS)
        try:
            if by_values:
                return self.values.layout_at_example(node)
            value = self.values.of(node, only_layout=True)
        finally:
            self.builder.graph.erase_node(node)
        return trees.map_tensors(lambda tensor: tensor.detach().to(META), value)


# What is sized by values, and comparisons with a size that is: a check of it is traced past.
_MAY_BE_UNKNOWN = frozenset({
    Tensor.__getitem__, torch.masked_select, Tensor.masked_select, Tensor.__eq__, Tensor.__ne__, Tensor.__lt__,
    Tensor.__le__, Tensor.__gt__, Tensor.__ge__, Tensor.eq, Tensor.ne, Tensor.lt, Tensor.le, Tensor.gt, Tensor.ge,
})  # fmt: skip
_SIZED_BY_VALUES = ("DynamicOutputShape", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave", "nms")


def _has_unknown_size(error: Exception) -> bool:
    """Whether a function failed on the meta device because the size of its result depends on values."""
    return any(name in repr(error) for name in _SIZED_BY_VALUES)


@functools.cache
def _constructors() -> frozenset[Any]:
    return frozenset(_device_constructors())

"""Runs of a model on the meta device, recorded: in eval, in training, and again to see whether it keeps a state."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.copies import DeepcopyTensorsWith, copy_module, meta_copy, meta_like
from fxprune.running.randomness import preserve_rng_state, random_state
from fxprune.tracing.aliasing import attributes_written_in
from fxprune.tracing.arguments import Arguments, call_as_given
from fxprune.tracing.caches import Key, forget_keys, keys_to_keep
from fxprune.tracing.deciders import ModeRead
from fxprune.tracing.facts import Facts
from fxprune.tracing.graph_builder import GraphBuilder, HiddenTensorError, Origin
from fxprune.tracing.library_modules import has_forward_hooks, is_library_module
from fxprune.tracing.limits import CallPlace
from fxprune.tracing.module_calls import ModuleCalls
from fxprune.tracing.number_functions import is_refused_type
from fxprune.tracing.patching import patched
from fxprune.tracing.python_state import PythonState, python_state
from fxprune.tracing.real_values import DataDependentError
from fxprune.tracing.recorder import Recorder
from fxprune.tracing.refusals import explained
from fxprune.tracing.scopes import ModuleCall
from fxprune.tracing.signature import SignatureCodeGen
from fxprune.tracing.size_nodes import SizeNodes
from fxprune.tracing.special_calls import SPECIAL_CALLS
from fxprune.tracing.state import kept_tensors, write_state
from fxprune.tracing.user_code import Place

__all__ = ["Leaves", "Recording", "Runner", "has_own_train"]

# Paths and types of modules that become one node each.
Leaves: TypeAlias = tuple[str | type[nn.Module], ...]


@dataclass(frozen=True)
class Recording:
    """What a run of the model gave.

    Attributes:
        builder: of the graph.
        sizes: the graph's sizes, with the guards that it needs.
        values_read: what was read of the model's values, in plain types.
        mode_reads: which modules read whether they or others are in training, or gradients are computed.
        changed: where forward has changed what is kept in Python.
        kept: what is kept there now.
        real: as for `Recorder`.
        arguments: what the model was called with.
        facts: what else its code has asked.
        device: what its code was told of the device of tensors.
        ranks: as for `Recorder`.
        draws_elsewhere: whether forward drew random numbers from NumPy or Python, which are constants in the graph.
        changed_leaves: the paths of modules that forward changed before it called them.
        written_after_read: the names of tensors that forward writes into, and whose entries Python has read.
        tensors_read: the names of the tensors that forward has computed with.
        tensors_left: those of tensors that it has replaced and the graph has not.
        runner: how the model was run.
        forgotten: the keys of caches that the run did not find, so that it made anew what the caches hold.
    """

    builder: GraphBuilder
    sizes: SizeNodes
    values_read: Mapping[str, Any]
    mode_reads: frozenset[ModeRead]
    changed: tuple[str, ...]
    kept: PythonState
    real: Mapping[int, Tensor]
    arguments: Arguments
    facts: Facts
    device: torch.device
    ranks: Mapping[fx.Node, ModuleCall]
    draws_elsewhere: bool
    changed_leaves: frozenset[str]
    written_after_read: frozenset[str]
    tensors_read: frozenset[str]
    tensors_left: frozenset[str]
    runner: Runner
    forgotten: frozenset[Key] = frozenset()


@dataclass
class Runner:
    """The model that is traced, and how it is run.

    Attributes:
        model: the original; not changed.
        args: its positional arguments.
        kwargs: its keyword arguments.
        copy_tensors: whether the traced model gets copies of the parameters and buffers.
        earlier_values: what an earlier trace has read of the model's values.
        exporting: "exporting" or "compiling" where the model's code sees that it is.
        by_values, constructs: as for `Recorder` and `SizeNodes`.
        own_types: whether `int` and `float` are Python's own in the model's files, and arrays have plain numbers.
        keeps_tables: whether the tables that these files keep have entries: some are made before the model runs.
        other_answer: what is answered otherwise than it is, as in `Facts`.
        dtype: of the floating-point tensors, where it is not that of the model.
        device: what is told of the device of tensors, where it is not that of the input.
        otherwise: where the code is told that a size is another than the one it names; None before that was looked for.
        same_at: sizes at which a graph gave what the model does, though that makes other calls there.
        kept_keys: attributes that look like keys of caches, and are none.
        changed_leaves: the paths of modules that forward changes before it calls them.
        counters: as for `RealValues`.
        types: as for `Lowering`.
        state: the names of tensors that forward computes with in eval or in training.
        training: whether the model is in training.
        in_other_mode: the paths of the modules that are not in this mode.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    copy_tensors: bool
    earlier_values: Mapping[str, Any]
    exporting: str = ""
    by_values: bool = False
    constructs: bool = False
    own_types: bool = False
    keeps_tables: bool = False
    other_answer: str | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    otherwise: frozenset[Place] | None = None
    same_at: set[str] = field(default_factory=set)
    kept_keys: set[Key] = field(default_factory=set)
    changed_leaves: set[str] = field(default_factory=set)
    counters: set[str] = field(default_factory=set)
    types: dict[CallPlace, CodeType | None] = field(default_factory=dict)
    state: set[str] = field(default_factory=set)
    training: bool = False
    in_other_mode: frozenset[str] = frozenset()

    def record(self, leaves: Leaves, kept: set[str]) -> Recording:
        """Run the model.

        Args:
            leaves: modules that the user wants whole.
            kept: paths of modules that the tracer keeps whole.

        Raises:
            FxpruneError: the model cannot be traced.
        """
        try:
            recorded = self._record_without_keys(leaves, kept)
            if self.constructs or not (recorded.sizes.constructs or _may_construct(recorded.builder)):
                return recorded
            self.constructs = True
        except FxpruneError as error:
            cause = error.__cause__
            if not self.own_types and is_refused_type(cause):
                self.own_types = True
            elif not self.keeps_tables and isinstance(cause, KeyError):
                self.keeps_tables = True
            elif not self.constructs and isinstance(cause, HiddenTensorError):
                self.constructs = True
            else:
                raise
        return self.record(leaves, kept)

    def record_training(self, leaves: Leaves, kept: set[str]) -> Recording:
        """Run the model in training; on two samples where one is too few.

        Raises:
            FxpruneError: the model cannot be traced in training.
        """
        in_training = replace(self, training=True)
        try:
            return in_training.record(leaves, kept)
        except FxpruneError:
            # BatchNorm cannot train on one value per channel, as a batch of 1 has at the end of a network.
            tensors = trees.tensors((self.args, self.kwargs))
            if not all(tensor.ndim and len(tensor) == 1 for tensor in tensors):
                raise
            args, kwargs = trees.map_tensors(lambda x: torch.cat([x, x]), (self.args, self.kwargs))
            return replace(in_training, args=args, kwargs=kwargs).record(leaves, kept)

    def record_next(self, recording: Recording, leaves: Leaves, kept: set[str]) -> Recording:
        """Run the model once more, as an earlier run has left it.

        Raises:
            FxpruneError: the model cannot be traced then.
        """
        builder = recording.builder
        return recording.runner._record(builder.root, recording.real, leaves, kept, builder)

    def learns_from(self, recording: Recording) -> bool:
        """Whether a recording has shown what has to be known before the model is recorded; from now on it is."""
        new = recording.changed_leaves - self.changed_leaves, recording.written_after_read - self.counters
        self.changed_leaves |= recording.changed_leaves
        self.counters |= recording.written_after_read
        self.state |= recording.tensors_read
        return any(new)

    def convert(self, tensor: Tensor) -> Tensor:
        """What becomes of one of the model's tensors in the traced model."""
        if not self.copy_tensors:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        return tensor.detach().clone().requires_grad_(tensor.requires_grad and tensor.is_leaf)

    def _record_without_keys(self, leaves: Leaves, kept: set[str]) -> Recording:
        """Record a run that finds no keys of caches, but for those that it needs."""
        # Kept in vain where the run fails with them, too.
        tried: set[Key] = set()
        while True:
            twin, real = self._twin()
            forgotten = forget_keys(twin, self.kept_keys)
            try:
                recording = self._record(twin, real, leaves, kept)
            except FxpruneError:
                if not forgotten:
                    self.kept_keys -= tried
                    raise
                tried |= forgotten.keys()
                self.kept_keys |= forgotten.keys()
                continue
            needed = keys_to_keep(twin, forgotten)
            if not needed:
                return replace(recording, forgotten=frozenset(forgotten))
            self.kept_keys.update(needed)

    def _record(
        self, twin: nn.Module, real: Mapping[int, Tensor], leaves: Leaves, kept: set[str],
        earlier: GraphBuilder | None = None,
    ) -> Recording:  # fmt: skip
        types = tuple(leaf for leaf in leaves if isinstance(leaf, type))

        def is_leaf(module: nn.Module, path: str) -> bool:
            whole = path in kept or path in leaves or isinstance(module, types) or is_library_module(module)
            return whole and path not in self.changed_leaves

        arguments = self._bind(twin)
        bound = arguments.values
        given_on = (tensor.device for tensor in trees.tensors((self.args, self.kwargs)))
        device = self.device or next(given_on, torch.device("cpu"))
        recorder = Recorder(
            twin, real, bound,
            device=device,
            real_module=functools.partial(self._real_module, {}),
            earlier_values=self.earlier_values,
            special_calls=SPECIAL_CALLS,
            training=self.training,
            other_answer=self.other_answer,
            otherwise=self.otherwise or frozenset(),
            counters=self.counters,
            earlier=earlier,
            by_values=self.by_values,
            types=self.types,
        )  # fmt: skip
        recorder.builder.graph.set_codegen(SignatureCodeGen(arguments.signature))
        placeholders = {name: self._placeholder(recorder, arguments, name) for name in bound}
        modules = ModuleCalls(recorder, is_leaf)
        try:
            with (
                preserve_rng_state(),
                patched(recorder, modules, self.own_types, not self.keeps_tables, self.constructs) as reads,
                _exporting(self.exporting),
            ):
                given = {
                    name: recorder.results.adopt(node.meta["value"], node)
                    for name, node in placeholders.items()
                    if name in arguments.given
                }
                positional, named = call_as_given(given, arguments.signature, hooked=has_forward_hooks(twin))
                tensors, kept_before = kept_tensors(twin), python_state(twin)
                before = random_state()
                output = twin(*positional, **named)
                if (refusal := recorder.first_refusal()) is not None:
                    # The model's code has caught it, and gone another way than with values.
                    raise refusal
                draws_elsewhere = random_state() != before
                now = python_state(twin)
                recorder.regions.finish()
                with torch._C.DisableTorchFunction():
                    state = write_state(recorder, twin, tensors, output, self.state)
                    result, values, origin = recorder.lowering.lower_output(output)
                    recorder.builder.create_node("output", "output", (result,), {}, values, origin)
        except Exception as error:
            shapes = [tuple(tensor.shape) for tensor in trees.tensors(list(bound.values()))]
            failed_in = recorder.scopes.failed_in or ""
            if isinstance(error, DataDependentError):
                error.module = error.module or failed_in
            raise explained(self.model, failed_in, shapes, error) from error
        own = {path for path, module in twin.named_modules() if has_own_train(module) or _looks_up_training(module)}
        seen = frozenset(reads | recorder.facts.readers() | {(path, path) for path in own | modules.may_follow_mode})
        builder, sizes, read = recorder.builder, recorder.sizes, recorder.values.read
        stale = frozenset(recorder.values.sources & _written(builder)) if recorder.values.sources else frozenset()
        return Recording(
            builder, sizes, read, seen, tuple(now.changed_since(kept_before)), now, real, arguments, recorder.facts,
            device, recorder.ranks, draws_elsewhere, frozenset(modules.changed), stale, *state, self,
        )  # fmt: skip

    def _twin(self) -> tuple[nn.Module, dict[int, Tensor]]:
        """The model on the meta device, and the real tensor for the identity of each of its tensors."""
        twin, real = meta_copy(self.model, self.dtype)
        for module in twin.modules():
            if isinstance(module, nn.TransformerEncoder):
                # Nested tensors are a faster way to the same result, with sizes that depend on the values of the mask.
                module.use_nested_tensor = False
        # Models that cache tensors drop them when they enter training.
        twin.train()
        twin.train(self.training)
        for path, module in twin.named_modules() if self.in_other_mode else ():
            training = self.training != (path in self.in_other_mode)
            if has_own_train(module):
                module.train(training)
            module.training = training
        return twin, real

    def _placeholder(self, recorder: Recorder, arguments: Arguments, name: str) -> fx.Node:
        value = trees.map_tensors(lambda tensor: meta_like(tensor, self.dtype), arguments.values[name])
        return recorder.builder.create_node("placeholder", name, arguments.default(name), {}, value, Origin.INPUTS)

    def _bind(self, twin: nn.Module) -> Arguments:
        signature = inspect.signature(twin.forward)
        try:
            bound = signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            raise FxpruneError(
                f"The example inputs do not fit `{type(self.model).__name__}.forward{signature}`: {error}."
            ) from error
        return Arguments.of(signature, bound)

    def _real_module(self, memo: dict[int, Any], path: str) -> nn.Module:
        with DeepcopyTensorsWith(self.convert):
            return copy_module(self.model.get_submodule(path), memo, hooks=False).train(self.training)


def has_own_train(module: nn.Module) -> bool:
    """Whether `train()` of a module may do more than set `training`."""
    return type(module).train is not nn.Module.train


def _looks_up_training(module: nn.Module) -> bool:
    """Whether the code of a class may read its mode from a dict, as in `vars(self)["training"]`, which nobody sees."""
    return any("training" in code.co_consts for code in _codes(type(module)))


def _may_construct(builder: GraphBuilder) -> bool:
    """Whether a constant may come from `torch.Tensor(*sizes)`, which reads sizes out of sight."""
    if not builder.constants.keys() - builder.constant_places.keys():
        return False
    kinds = {type(module) for module in builder.root.modules()}
    return any("Tensor" in code.co_names for kind in kinds for code in _codes(kind))


def _codes(kind: type) -> Iterator[CodeType]:
    """The code of the functions of a class, and that within them; without what torch has."""
    parts = (part for base in kind.__mro__ if not base.__module__.startswith("torch.") for part in vars(base).values())
    codes = [part.__code__ for part in parts if isinstance(part, FunctionType)]
    for code in codes:
        yield code
        codes.extend(each for each in code.co_consts if isinstance(each, CodeType))


def _written(builder: GraphBuilder) -> set[str]:
    nodes = [node for node in builder.graph.nodes if node.op == "call_module"]
    return attributes_written_in(builder.graph, {str(node.target): builder.module(str(node.target)) for node in nodes})


@contextmanager
def _exporting(exporting: str) -> Iterator[None]:
    """Inside, `torch.compiler.is_compiling()`: some models then run without control flow on values."""
    flags = {"_is_compiling_flag": bool(exporting), "_is_exporting_flag": exporting == "exporting"}
    before = {name: getattr(torch.compiler, name) for name in flags if hasattr(torch.compiler, name)}
    try:
        for name in before:
            setattr(torch.compiler, name, flags[name] or before[name])
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)

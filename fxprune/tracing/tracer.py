"""model + example inputs -> a GraphModule that is the same model."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.models import source_of
from fxprune.running import trees
from fxprune.running.calls import given_call
from fxprune.running.copies import DeepcopyTensorsWith, copy_module, meta_copy, meta_like, parameters_and_buffers
from fxprune.tracing.guards import insert_guards
from fxprune.tracing.library_modules import is_library_module
from fxprune.tracing.modes import compare, insert_modes, small_readers
from fxprune.tracing.notes import TraceNotes, set_trace_notes, trace_notes
from fxprune.tracing.patching import recording
from fxprune.tracing.reading import DataDependentError
from fxprune.tracing.recording import Recorder
from fxprune.tracing.refusals import explained, refuse_what_cannot_be_traced
from fxprune.tracing.sizes import is_refused_type
from fxprune.tracing.special_calls import SPECIAL_CALLS
from fxprune.tracing.state import (
    STATE_IS_LOST,
    Numbers,
    changed_numbers,
    kept_numbers,
    kept_tensors,
    numbers_are_lost,
    put_numbers,
    write_state,
)
from fxprune.tracing.tidying import remove_dead_nodes
from fxprune.tracing.traced_module import TracedModule

__all__ = ["TracedModule", "trace", "trace_knowing"]

Leaves = tuple[str | type[nn.Module], ...]


def trace(
    model: nn.Module, example_inputs: Any = None, *, copy: bool = True, leaves: Leaves = ()
) -> TracedModule:  # fmt: skip
    """The model as a graph of torch calls: same state_dict, same outputs, in eval and in train mode.

    `example_inputs` is a tensor, a tuple or list of positional arguments or a dict of keyword arguments; if None, it is
    made by `fxprune.models.example_inputs`. No weight is computed with: the trace runs on the meta device. Sizes are
    computed by the graph, so that other batch sizes and resolutions work where they do in the model; where its code
    follows a size in a loop or a branch, the graph raises FxpruneError at sizes for which it would go another way.

    What forward hooks do is in the graph, and its modules have none: they leave nothing where hooks put it aside.

    Every node has `meta["value"]`, its value at the example inputs with tensors on the meta device, and
    `meta["module"]`, the path of the innermost module that it comes from. `fxprune.tracing.notes.trace_notes`
    gives what the result knows of its trace: the example inputs, what was taken as constant, how the model is built.

    `copy=False` shares the parameters and buffers with `model`; the modules are always new ones. `leaves` names modules
    (paths or types) that become one node each; those of `torch.nn` do anyway.

    Raises FxpruneError if the model's code depends on the values of the input, or fails. Warns by FxpruneWarning where
    a module with layers to prune runs other code in training, which the graph does not have; a module without such
    layers is kept as it is.
    """
    traced = trace_knowing(model, example_inputs, {}, copy=copy, leaves=leaves)
    for note in trace_notes(traced).remarks:
        if note.startswith((_ONLY_EVAL, STATE_IS_LOST)):
            warnings.warn(note, FxpruneWarning, stacklevel=2)
    return traced


# How the notes start that are warned of: a model that learns with this graph does not learn as the original does.
_ONLY_EVAL = "Only the code of eval is in the graph"


_NAMED = 3


def _only_eval(model: nn.Module, paths: list[str]) -> str:
    """The note on modules that run other code in training."""
    named = ", ".join(f"`{path or type(model).__name__}`" for path in paths[:_NAMED])
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return (
        f"{_ONLY_EVAL} for {named}{more}: other code runs there in training. What that does (noise, running "
        "averages, further outputs) is missing when the result is trained. To keep it, move it into a module of its "
        "own that has no layers to prune, for such a module stays whole; or train what `fxprune.restore_class` makes "
        "of the result."
    )


def trace_knowing(
    model: nn.Module, example_inputs: Any, values: Mapping[str, Any], *, copy: bool = True, leaves: Leaves = ()
) -> TracedModule:
    """As `trace`, with what an earlier trace of the same model has read of its values: `TraceNotes.values_read`."""
    if not isinstance(model, nn.Module):
        raise FxpruneError(
            f"model (a {type(model).__name__}) is no nn.Module: build it first, as timm.create_model('resnet50') does"
        )
    args, kwargs = given_call(model, example_inputs)
    refuse_what_cannot_be_traced(model)
    source = _Source(model, args, kwargs, copy, values)
    notes: list[str] = []
    values_read: dict[str, Any] = {}
    kept: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        while True:
            try:
                recorded = source.record(leaves, kept, training=False)
            except FxpruneError as error:
                if source.exporting or not isinstance(error.__cause__, DataDependentError):
                    raise
                source.exporting = True
                recorded = source.record(leaves, kept, training=False)
                notes.append(
                    "Traced as for torch.export: otherwise the model's control flow depends on the values of its input."
                )
            values_read |= recorded.values_read
            state = source.notes_on_numbers(recorded, leaves, kept)
            if not recorded.training_readers:
                break
            try:
                trained = source.record_training(leaves, kept)
            except FxpruneError as error:
                notes.append(f"{_ONLY_EVAL}, for training cannot be traced: {error}")
                break
            values_read |= trained.values_read
            differences = compare(recorded, trained)
            readers = recorded.training_readers | trained.training_readers
            mode_dependent = small_readers(model, readers, differences, recorded)
            if mode_dependent <= kept:
                insert_modes(recorded, differences.literals)
                if of_eval := sorted(differences.scopes & readers or (differences.scopes and {""})):
                    notes.append(_only_eval(model, of_eval))
                break
            kept |= mode_dependent
    notes.extend([*recorded.notes, *state])
    notes.extend(insert_guards(recorded))
    notes.extend(
        f"`train()` of `{path or type(model).__name__}` leaves a part as it is; the traced model has the usual one."
        for path in _unusual_train(model)
        if path not in kept
    )
    remove_dead_nodes(recorded)
    traced = source.assemble(recorded)
    types = tuple(leaf for leaf in leaves if isinstance(leaf, type))
    whole = (path for path, module in model.named_modules() if path in leaves or isinstance(module, types))
    trace = TraceNotes(
        example_inputs=(args, kwargs),
        remarks=tuple(dict.fromkeys(notes)),
        source=source_of(model),
        values_read=values_read,
        leaves=tuple(whole),
        constant_places=recorded.constant_places,
    )
    set_trace_notes(traced, trace)
    return traced


def _unusual_train(model: nn.Module) -> list[str]:
    """The modules whose own `train()` does not put all of them into training, as those that keep norms in eval."""
    own = [path for path, module in model.named_modules() if type(module).train is not nn.Module.train]
    if not own:
        return []
    twin, _ = meta_copy(model)
    learn = [parameter.requires_grad for parameter in twin.parameters()]
    twin.eval()
    twin.train()
    if [parameter.requires_grad for parameter in twin.parameters()] != learn:
        return own
    return [path for path in own if not all(module.training for module in twin.get_submodule(path).modules())]


# --- what is traced ---------------------------------------------------------------------------------------------------


@contextmanager
def _said_to_export(exporting: bool) -> Iterator[None]:
    """What a model asks for that has a way without control flow on values: `torch.compiler.is_compiling()`."""
    flags = ("_is_compiling_flag", "_is_exporting_flag")
    before = {name: getattr(torch.compiler, name) for name in flags if hasattr(torch.compiler, name)}
    try:
        for name in before:
            setattr(torch.compiler, name, exporting or before[name])
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)


@dataclass
class _Source:
    """The model that is traced, with what it is called with."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    copy_tensors: bool
    values: Mapping[str, Any]
    exporting: bool = False
    own_types: bool = False
    numbers: Numbers = field(default_factory=dict)

    def record(self, leaves: Leaves, kept: set[str], training: bool) -> Recorder:
        try:
            return self._record(leaves, kept, training)
        except FxpruneError as error:
            if self.own_types or not is_refused_type(error.__cause__):
                raise
            self.own_types = True
            return self._record(leaves, kept, training)

    def _record(self, leaves: Leaves, kept: set[str], training: bool) -> Recorder:
        twin, real = meta_copy(self.model)
        for module in twin.modules():
            if isinstance(module, nn.TransformerEncoder):
                # Nested tensors are a faster way to the same result, of shapes that depend on the values of the mask.
                module.use_nested_tensor = False
        # Models that cache tensors drop them when they enter training.
        twin.train()
        twin.train(training)
        put_numbers(twin, self.numbers)
        types = tuple(leaf for leaf in leaves if isinstance(leaf, type))

        def is_leaf(module: nn.Module, path: str) -> bool:
            return path in kept or path in leaves or isinstance(module, types) or is_library_module(module)

        device = next((tensor.device for tensor in trees.tensors((self.args, self.kwargs))), torch.device("cpu"))
        clones: dict[int, Any] = {}
        leaf_clone = functools.partial(self._leaf_clone, clones, training)
        recorder = Recorder(twin, is_leaf, real, leaf_clone, device, SPECIAL_CALLS, self.values)
        bound, signature = self._bind(twin)
        for name, value in bound.items():
            kind = signature.parameters[name].kind
            star = "*" if kind is kind.VAR_POSITIONAL else "**" if kind is kind.VAR_KEYWORD else ""
            recorder.placeholder(star + name, trees.map_tensors(meta_like, value), value)
        try:
            with recording(recorder, self.own_types), _said_to_export(self.exporting):
                positional, named = _call_arguments(recorder.adopt_placeholders(), signature)
                before, numbers = kept_tensors(twin), kept_numbers(twin)
                output = twin(*positional, **named)
                recorder.changed_numbers = changed_numbers(twin, numbers)
                with torch._C.DisableTorchFunction():
                    write_state(recorder, twin, before, output)
                    result, values, origin = recorder.lower_output(output)
                    recorder.create_node("output", "output", (result,), {}, values, origin)
        except Exception as error:
            raise explained(self.model, recorder, error) from error
        return recorder

    def record_training(self, leaves: Leaves, kept: set[str]) -> Recorder:
        try:
            return self.record(leaves, kept, training=True)
        except FxpruneError:
            # BatchNorm cannot train on a single value per channel, as there is at the end of a network in a batch of 1.
            tensors = trees.tensors((self.args, self.kwargs))
            if not all(tensor.ndim and len(tensor) == 1 for tensor in tensors):
                raise
            args, kwargs = trees.map_tensors(lambda x: torch.cat([x, x]), (self.args, self.kwargs))
            return replace(self, args=args, kwargs=kwargs).record(leaves, kept, training=True)

    def notes_on_numbers(self, recorded: Recorder, leaves: Leaves, kept: set[str]) -> list[str]:
        """What to say of numbers that forward has changed, if the next call does something else for them."""
        if not recorded.changed_numbers:
            return []
        try:
            again = replace(self, numbers=recorded.changed_numbers).record(leaves, kept, training=False)
        except FxpruneError:
            # It believes to have made a table, which is not there.
            return []
        differences = compare(recorded, again)
        same = not (differences.scopes or differences.literals)
        return [] if same else [numbers_are_lost(self.model, recorded.changed_numbers)]

    def _bind(self, twin: nn.Module) -> tuple[dict[str, Any], inspect.Signature]:
        signature = inspect.signature(twin.forward)
        try:
            return dict(signature.bind(*self.args, **self.kwargs).arguments), signature
        except TypeError as error:
            raise FxpruneError(
                f"The example inputs do not fit `{type(self.model).__name__}.forward{signature}`: {error}."
            ) from error

    def _leaf_clone(self, memo: dict[int, Any], training: bool, path: str) -> nn.Module:
        with DeepcopyTensorsWith(self._converted):
            return copy_module(self.model.get_submodule(path), memo, hooks=False).train(training)

    def _converted(self, tensor: Tensor) -> Tensor:
        if not self.copy_tensors:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        return tensor.detach().clone().requires_grad_(tensor.requires_grad and tensor.is_leaf)

    def assemble(self, recorded: Recorder) -> TracedModule:
        """The graph with the modules that it calls and everything that has state."""
        memo: dict[int, Any] = {}
        for tensor in parameters_and_buffers(self.model):
            memo[id(tensor)] = self._converted(tensor)
        called = {id(self.model.get_submodule(node.target)) for node in recorded.graph.nodes
                  if node.op == "call_module" and node.target in recorded.original_paths}  # fmt: skip
        converted: dict[int, nn.Module | None] = {}

        def convert(module: nn.Module) -> nn.Module | None:
            if id(module) in converted:
                return converted[id(module)]
            result: nn.Module | None
            if id(module) in called or (module is not self.model and is_library_module(module)):
                has_state = any(True for _ in parameters_and_buffers(module))
                with DeepcopyTensorsWith(self._converted):
                    result = copy_module(module, memo, hooks=False) if id(module) in called or has_state else None
            else:
                result = nn.Module()
                result.training = module.training
                result._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
                for name, parameter in module._parameters.items():
                    result._parameters[name] = None if parameter is None else memo[id(parameter)]
                for name, buffer in module._buffers.items():
                    result._buffers[name] = None if buffer is None else memo[id(buffer)]
                for name, child in module._modules.items():
                    kept = None if child is None else convert(child)
                    if kept is not None:
                        result._modules[name] = kept
                if module is not self.model and not (result._modules or result._parameters or result._buffers):
                    result = None
            converted[id(module)] = result
            return result

        root = cast(nn.Module, convert(self.model))
        for name, tensor in recorded.constants.items():
            root.register_buffer(name, tensor.clone() if self.copy_tensors else tensor, persistent=False)
        for path, module in recorded.functions.items():
            _install(root, path, module, self.model)
        return TracedModule.assemble(root, recorded.graph, type(self.model).__name__)


def _call_arguments(given: dict[str, Any], signature: inspect.Signature) -> tuple[list[Any], dict[str, Any]]:
    """Placeholders to the arguments of the call, which are by name unless that is impossible."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    variadic = any(target.startswith("*") and not target.startswith("**") for target in given)
    for target, value in given.items():
        if target.startswith("**"):
            named.update(value)
        elif target.startswith("*"):
            positional.extend(value)
        else:
            kind = signature.parameters[target].kind
            if kind is kind.POSITIONAL_ONLY or (variadic and kind is kind.POSITIONAL_OR_KEYWORD):
                positional.append(value)
            else:
                named[target] = value
    return positional, named


def _install(root: nn.Module, path: str, module: nn.Module, model: nn.Module) -> None:
    parent, original = root, model
    *prefix, name = path.split(".")
    for part in prefix:
        original = cast(nn.Module, original._modules[part])
        if part not in parent._modules:
            parent._modules[part] = nn.Module()
            parent._modules[part].training = original.training  # type: ignore[union-attr]
        parent = cast(nn.Module, parent._modules[part])
    module.train(parent.training)
    parent._modules[name] = module

"""model + example inputs -> a GraphModule that is the same model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import FxpruneError, warn
from fxprune.models import source_of
from fxprune.ops import Trait, traits
from fxprune.running.calls import given_call
from fxprune.running.collector import no_collection
from fxprune.running.copies import meta_copy
from fxprune.running.randomness import preserve_rng_state, reseed
from fxprune.tracing.arguments import insert_argument_checks
from fxprune.tracing.assembly import assemble
from fxprune.tracing.attempts import COMPILED, CONDITIONS, OTHER_WAY, SIZED_BY_VALUES, STAYS_WHOLE, record_in_eval
from fxprune.tracing.checks import warn_in_training
from fxprune.tracing.deciders import Deciders, ModeRead
from fxprune.tracing.gradient_calls import GRADIENTS_DIFFER, backward_hooks_are_lost
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.guards import insert_guards, tie_loops
from fxprune.tracing.library_modules import is_library_module
from fxprune.tracing.loop_trials import unconfirmed_loops
from fxprune.tracing.merging import CannotMergeError, common_literals, merge
from fxprune.tracing.mode_trials import tie_modes_passed_on
from fxprune.tracing.modes import Literal, compare, insert_modes, small_readers
from fxprune.tracing.next_call import lost_on_next_call
from fxprune.tracing.notes import TraceNotes, set_trace_notes, trace_notes
from fxprune.tracing.number_trials import SAME_AT, compute_unseen_numbers
from fxprune.tracing.ranks import insert_rank_checks
from fxprune.tracing.real_values import LIKELIER_DRAW
from fxprune.tracing.refusals import refuse_what_cannot_be_traced
from fxprune.tracing.rolling import alike_in_steps
from fxprune.tracing.runs import Leaves, Recording, Runner, has_own_train
from fxprune.tracing.size_branches import OTHER_BRANCHES, right_for_all_sizes
from fxprune.tracing.size_trials import tie_unseen_sizes
from fxprune.tracing.spelling import first_few
from fxprune.tracing.state import BUFFER_IS_LEFT, STATE_IS_LOST, values_are_lost
from fxprune.tracing.traced_module import ApplyFunction, ByMode, TracedModule
from fxprune.tracing.what_if import followed, in_training_with_gradients, insert_fact_checks, settle_types
from fxprune.tracing.whole_parts import FLOPS_OF_WHOLE, note_flops

__all__ = ["TracedModule", "trace", "trace_knowing"]


def trace(
    model: nn.Module, example_inputs: Any = None, *, copy: bool = True, leaves: Leaves = ()
) -> TracedModule:  # fmt: skip
    """The model as a graph of torch calls: same state_dict, same outputs, in eval and in train mode.

    No weight is computed with: the trace runs on the meta device. Sizes are computed by the graph, so that other batch
    sizes and resolutions work where they do in the model. Where the model's code follows a size in a loop or a branch,
    the graph raises FxpruneError at sizes for which the code would go another way. What forward hooks do is in the
    graph, and its modules have no hooks.

    Args:
        model: not changed.
        example_inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments; default:
            `fxprune.models.example_inputs(model)`.
        copy: whether the result has its own parameters and buffers, or shares those of `model`. Its modules are always
            new ones.
        leaves: paths or types of modules that become one node each; those of `torch.nn` do anyway.

    Returns:
        A GraphModule. Every node has `meta["value"]`, its value at the example inputs with tensors on the meta device,
        and `meta["module"]`, the path of the innermost module that it comes from. What the result knows of its trace
        (the example inputs, what was taken as constant, how the model is built) is in
        `fxprune.tracing.notes.trace_notes(result)`.

    Raises:
        FxpruneError: the model's code depends on the values of the input, or fails.

    Warns:
        FxpruneWarning: something that the model does in training is not in the graph: training cannot be traced, it
            draws random numbers from NumPy or Python, or layers are skipped at random. The graph warns of it too, when
            it runs in training. Or the model's own `train()` leaves parts in eval. Or random numbers that it draws from
            NumPy or Python in eval are constants of the graph. Or forward keeps something from call to call, or asks
            something of autograd, that the graph has not. Or a part stays whole, since its code follows the values of
            the input; or these decide how large tensors are, or which way the code goes.
    """
    traced = trace_knowing(model, example_inputs, {}, copy=copy, leaves=leaves)
    for note in trace_notes(traced).remarks:
        if note.startswith((*_LOST_IN_TRAINING, *_ALSO_WARNED)):
            warn(note)
    return traced


def trace_knowing(
    model: nn.Module, example_inputs: Any, values: Mapping[str, Any], *, copy: bool = True, leaves: Leaves = ()
) -> TracedModule:
    """As `trace`, with the values of the model that an earlier trace of it has read: its `TraceNotes.values_read`."""
    if not isinstance(model, nn.Module):
        raise FxpruneError(
            f"model (a {type(model).__name__}) is no nn.Module: build it first, as timm.create_model('resnet50') does"
        )
    args, kwargs = given_call(model, example_inputs)
    refuse_what_cannot_be_traced(model)
    runner = Runner(model, args, kwargs, copy, values, same_at={*values.get(SAME_AT, ())})
    with torch.random.fork_rng(devices=[]), no_collection():
        recorded, values_read, kept, remarks = _record_in_both_modes(runner, leaves)
    if runner.same_at:
        values_read[SAME_AT] = sorted(runner.same_at)
    builder = recorded.builder
    insert_argument_checks(builder, recorded.arguments, model)
    remarks.extend(
        f"{_USUAL_TRAIN} `train()` of `{path or type(model).__name__}` leaves a part as it is: after `train()` of the "
        "result, put that part into eval."
        for path in _with_unusual_train(model)
        if path not in kept
    )
    _tidy(builder)
    remarks.extend(tie_loops(builder.graph))
    traced = assemble(model, builder, runner.convert)
    if counts := note_flops(traced, kept, (args, kwargs), values):
        values_read[FLOPS_OF_WHOLE] = counts
    types = tuple(leaf for leaf in leaves if isinstance(leaf, type))
    whole = (path for path, module in model.named_modules() if path in leaves or isinstance(module, types))
    known = TraceNotes(
        example_inputs=(args, kwargs),
        remarks=tuple(dict.fromkeys(remarks)),
        source=source_of(model),
        values_read=values_read,
        leaves=tuple(whole),
        constant_places=builder.constant_places,
        forgotten_keys=recorded.forgotten,
        traced_from=trace_notes(model).traced_from or (dict(model.meta) if isinstance(model, fx.GraphModule) else {}),
    )
    set_trace_notes(traced, known)
    return traced


def _record_in_both_modes(
    runner: Runner, leaves: Leaves, *, not_merged: str = ""
) -> tuple[Recording, dict[str, Any], set[str], list[str]]:  # fmt: skip
    """Record the model in eval, and make its graph follow the mode where training differs.

    Args:
        runner: of the model.
        leaves: modules that the user wants whole.
        not_merged: why the graph cannot get the calls that training alone makes, a sentence; empty if it can.

    Returns:
        The recording, the values of the model that were read, the paths of the modules that stay whole, and remarks.
    """
    remarks: list[str] = []
    values_read: dict[str, Any] = {}
    kept: set[str] = set()
    literals: list[Literal] = []
    followed_too: Recording | None = None
    reads: frozenset[ModeRead] = frozenset()
    only_in_training: list[str] = []
    while True:
        in_eval = record_in_eval(runner, leaves, kept, remarks)
        if runner.otherwise is None:
            runner.otherwise = right_for_all_sizes(runner, in_eval, leaves)
            if runner.otherwise:
                continue
        if runner.learns_from(in_eval) or settle_types(in_eval, leaves, kept):
            continue
        builder = in_eval.builder
        values_read |= in_eval.values_read
        if runner.exporting == "compiling":
            values_read[COMPILED] = True
        if runner.otherwise:
            values_read[OTHER_BRANCHES] = sorted(runner.otherwise)
        if in_eval.draws_elsewhere:
            remarks.append(f"{_DRAWN_ONCE}: draw them with torch, as in torch.rand, to have others in each call.")
        state = lost_on_next_call(runner, in_eval, leaves, kept)
        remarks.extend(values_are_lost(runner.model, in_eval.written_after_read))
        if not in_eval.mode_reads:
            break
        try:
            in_training = runner.record_training(leaves, kept)
        except FxpruneError as error:
            remarks.append(f"{_ONLY_EVAL}, for training cannot be traced: {error}")
            break
        if runner.learns_from(in_training) or in_eval.tensors_left & in_training.tensors_read:
            continue
        if settle_types(in_training, leaves, kept):
            continue
        values_read |= in_training.values_read
        only_in_training = [
            *(remark for remark in in_training.builder.remarks if remark.startswith((STATE_IS_LOST, BUFFER_IS_LEFT))),
            *lost_on_next_call(runner, in_training, leaves, kept),
            *values_are_lost(runner.model, in_training.written_after_read),
        ]
        only_in_training = [remark for remark in only_in_training if remark not in [*remarks, *builder.remarks, *state]]
        remarks.extend([*in_training.builder.remarks, *only_in_training])
        differences = compare(builder, in_training.builder)
        reads = in_eval.mode_reads | in_training.mode_reads
        readers = {reader for reader, _ in reads}
        small = small_readers(runner.model, readers, differences, builder)
        if small <= kept:
            literals = common_literals(builder, in_training.builder) if differences.scopes else differences.literals
            if in_training.draws_elsewhere:
                literals = _always(runner, leaves, kept, builder, literals)
                remarks.append(_only_eval(runner.model, differences.scopes & readers, _DRAWS_ELSEWHERE))
            elif not not_merged:
                followed_too = in_training
            else:
                remarks.append(_only_eval(runner.model, differences.scopes & readers, not_merged))
            break
        kept |= small
    deciders = Deciders(builder, reads)
    if followed_too is None:
        guards = _insert_checks(in_eval, leaves, kept)
        literals = [*literals, *in_training_with_gradients(builder)]
    else:
        if differences.scopes or differences.literals:
            tie_modes_passed_on(in_eval, followed_too, deciders, leaves, kept)
        guards = [*_insert_checks(in_eval, leaves, kept), *_insert_checks(followed_too, leaves, kept)]
        same_calls = not differences.scopes
        differences = compare(builder, followed_too.builder)
        literals = differences.literals
        try:
            if differences.scopes:
                literals = merge(builder, followed_too.builder, deciders, same_calls=same_calls)
        except CannotMergeError as error:
            return _record_in_both_modes(runner, leaves, not_merged=f"Both ways cannot be in one graph: {error}. ")
    insert_modes(builder, literals, deciders)
    deciders.insert_checks()
    remarks.extend([*builder.remarks, *backward_hooks_are_lost(builder), *state])
    lost = (*_LOST_IN_TRAINING, GRADIENTS_DIFFER)
    _insert_warning(builder, [remark for remark in remarks if remark.startswith(lost) or remark in only_in_training])
    return in_eval, values_read, kept, [*remarks, *guards]


def _insert_checks(recorded: Recording, leaves: Leaves, kept: set[str]) -> list[str]:
    """Put checks into a graph for all that the model's code followed in one mode; returns remarks on them."""
    builder, runner = recorded.builder, recorded.runner
    if builder.loops:
        unconfirmed = unconfirmed_loops(runner, recorded, leaves, kept)
        builder.single_loops |= unconfirmed
        builder.confirmed_loops |= set(range(builder.loops)) - unconfirmed
    facts = followed(runner, recorded, leaves, kept)
    tie_unseen_sizes(runner, recorded, leaves, kept)
    compute_unseen_numbers(runner, recorded, leaves, kept)
    guards = insert_guards(builder, recorded.sizes)
    insert_fact_checks(builder, facts)
    insert_rank_checks(builder, recorded.ranks)
    return guards


def _insert_warning(builder: GraphBuilder, lost: list[str]) -> None:
    """Let the graph warn, when it runs in training, of what it lacks there."""
    if lost:
        first = next(node for node in builder.graph.nodes if node.op != "placeholder")
        path = builder.add_module("lost_in_training", ByMode(" ".join(dict.fromkeys(lost)), None))
        with builder.scopes.within(("", 0)), builder.graph.inserting_before(first):
            by_mode = builder.graph.create_node("call_module", path)
            by_mode.meta.update(value=None, module="")
            builder.create_check(warn_in_training, (by_mode,))


# --- remarks ----------------------------------------------------------------------------------------------------------


# How a remark starts that becomes a warning: a model that is trained with this graph learns unlike the original.
_ONLY_EVAL = "Only the code of eval is in the graph"
_USUAL_TRAIN = "The graph trains as a whole."
_DRAWN_ONCE = "Random numbers that the model draws from NumPy or Python in eval are constants of the graph"
_ALSO_WARNED = (
    OTHER_WAY,
    _DRAWN_ONCE,
    STAYS_WHOLE,
    SIZED_BY_VALUES,
    CONDITIONS,
    _USUAL_TRAIN,
    STATE_IS_LOST,
    BUFFER_IS_LEFT,
    GRADIENTS_DIFFER,
)
_LOST_IN_TRAINING = (_ONLY_EVAL, LIKELIER_DRAW)


# What a graph cannot follow: there would be the same numbers in each step.
_DRAWS_ELSEWHERE = "It draws random numbers from NumPy or Python, and not from torch. "


def _only_eval(model: nn.Module, paths: AbstractSet[str], reason: str = "") -> str:
    """The remark on modules that run other code in training."""
    named = first_few([f"`{path or type(model).__name__}`" for path in sorted(paths or {""})], 3)
    return (
        f"{_ONLY_EVAL} for {named}: other code runs there in training. {reason}What that does (noise, running "
        "averages, further outputs) is missing when the result is trained. To keep it, move it into a module of its "
        "own without layers to prune: such a module stays whole. Or train the result of `fxprune.restore_class`."
    )


def _always(
    runner: Runner, leaves: Leaves, kept: set[str], builder: GraphBuilder, literals: list[Literal]
) -> list[Literal]:
    """Those of the literals of training that do not come from random numbers of NumPy or Python."""
    with preserve_rng_state():
        reseed(1)
        others = common_literals(builder, runner.record_training(leaves, kept).builder)
    again = {(each.node, each.place, each.train_value) for each in others}
    return [each for each in literals if (each.node, each.place, each.train_value) in again]


def _with_unusual_train(model: nn.Module) -> list[str]:
    """The modules whose own `train()` does not put all of them into training, as those that keep norms in eval."""
    own = [path for path, module in model.named_modules() if has_own_train(module)]
    if not own:
        return []
    twin, _ = meta_copy(model)
    learn = [parameter.requires_grad for parameter in twin.parameters()]
    twin.eval()
    twin.train()
    if [parameter.requires_grad for parameter in twin.parameters()] != learn:
        return own
    return [path for path in own if not all(module.training for module in twin.get_submodule(path).modules())]


# --- tidying ----------------------------------------------------------------------------------------------------------

# Entries of `node.meta` for nodes that do more than give a value.
_EFFECTS = frozenset({"mutates", "random", "check"})


def _tidy(builder: GraphBuilder) -> None:
    """Remove what nobody uses, arguments that are defaults, and the mark of checks in `node.meta`."""
    used = _used(builder)
    for node in reversed(builder.graph.nodes):
        if node not in used:
            builder.graph.erase_node(node)
    for node in builder.graph.nodes:
        node.meta.pop("check", None)
        if node.kwargs and inspect.isfunction(node.target) and node.target.__module__.startswith("torch."):
            # Functions of torch that are written in Python pass on all their arguments.
            defaults = _defaults(node.target)
            node.kwargs = {
                name: value
                for name, value in node.kwargs.items()
                if name != "_stacklevel" and not (name in defaults and _is_default(value, defaults[name]))
            }


def _used(builder: GraphBuilder) -> set[fx.Node]:
    """The nodes with an effect, and those that they are computed from; of a loop, the same in all steps."""
    alike = alike_in_steps(builder.graph)
    used: set[fx.Node] = set()
    stack = [node for node in builder.graph.nodes if _has_effect(builder, node)]
    while stack:
        node = stack.pop()
        if node not in used:
            used.add(node)
            stack.extend((*node.all_input_nodes, *alike.get(node, ())))
    return used


def _has_effect(builder: GraphBuilder, node: fx.Node) -> bool:
    if node.op == "call_module" and not _is_pure(node, builder.module(str(node.target))):
        return True
    return node.op in ("placeholder", "output") or bool(node.meta.keys() & _EFFECTS)


@functools.cache
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and isinstance(value, (int, float)) and value == default)


def _is_pure(node: fx.Node, module: nn.Module) -> bool:
    """Whether a call of the module changes nothing: neither a buffer nor the state of random numbers."""
    if isinstance(module, ByMode):
        return True
    stateful = any(True for _ in module.buffers()) or isinstance(module, nn.RReLU)
    drops = Trait.DROPOUT in traits(node, module)
    return is_library_module(module) and not (stateful or drops or isinstance(module, ApplyFunction))

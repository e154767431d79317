"""Numbers that libraries make of sizes out of sight, and that are sizes all the same: those of reshaped tensors.

A library for the notation of tensors may write code for the sizes it is given, or solve equations for them: it takes
sizes as plain numbers, and the graph would be good for these only. So the model is recorded at further sizes. Where it
makes the same calls there, and each number that differs is the same product of sizes in all of them, the graph computes
it. Where it makes other calls, as libraries do for a size of 1, the outputs are compared.

The code of a model may compare such a number with a size that is special for it, which no trial would show. So only
numbers that go to installed packages are taken for sizes, and to none that give numbers back.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.ops import name_of_op
from fxprune.running import trees
from fxprune.running.calls import Call
from fxprune.running.copies import parameters_and_buffers
from fxprune.tracing.assembly import assemble
from fxprune.tracing.guards import needed_guards
from fxprune.tracing.modes import Literal, arguments_differ, is_unused_piece, replaced
from fxprune.tracing.runs import Leaves, Recording, Runner
from fxprune.tracing.same_outputs import are_same, outputs_of
from fxprune.tracing.size_nodes import Guard
from fxprune.tracing.size_trials import is_position, same_constants
from fxprune.tracing.sizes import TracedInt, TracedNumber, plain, read_size, traced_number

__all__ = ["SAME_AT", "compute_unseen_numbers", "resized", "shapes_of"]

# Among the values that were read of a model: sizes at which the graph gives what the model does.
SAME_AT = "sizes at which other calls give the same"

# In place of a size; a model may not take all of them. Not tuned.
_OTHERS: tuple[Callable[[int], int], ...] = (
    lambda n: 1, lambda n: 2, lambda n: 3, lambda n: n + 1, lambda n: 2 * n, lambda n: 3 * n // 2, lambda n: n // 2,
    lambda n: 8 * n,
)  # fmt: skip
_FEWEST = 2
# They take sizes and do nothing else.
_RESHAPES = frozenset({"reshape", "view"})

# An argument of a node, by its place in (args, kwargs).
_Place: TypeAlias = "tuple[fx.Node, tuple[Any, ...]]"


def compute_unseen_numbers(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> None:
    """Put nodes in place of numbers that are products of sizes, and drop the guards that these make needless."""
    guards = recorded.sizes.guards
    elsewhere = any(guard.elsewhere for guard in needed_guards(recorded.builder, recorded.sizes))
    if recorded.draws_elsewhere or not elsewhere:
        return
    trials: list[_Trial] = []
    stay: list[Sequence[Guard]] = []
    unlike: list[Recording] = []
    tried = {shapes_of((runner.args, runner.kwargs))}
    for calls in _other_calls(runner.args, runner.kwargs):
        found: list[_Trial] = []
        for other in _recordings(runner, calls, tried, leaves, kept):
            trial = _trial(recorded, other)
            if trial is not None:
                found.append(trial)
            elif not _is_refused(guards, other.sizes.guards):
                unlike.append(other)
        trials.extend(found)
        if len(found) < _FEWEST:
            # Two points are in line with anything.
            stay.extend(trial.guards for trial in found if trial.literals)
    numbers = _numbers(trials)
    if None in numbers.values():
        return
    for (node, place), dims in numbers.items():
        if dims is not None:
            _compute(recorded, node, place, dims)
    stay += [other.sizes.guards for other in unlike if not _is_same_there(recorded, other)]
    free = {i for i, guard in enumerate(guards) if any(_moves(guard, trial.guards[i]) for trial in trials)}
    free -= {i for others in stay for i in _tied(guards, others)}
    guards[:] = [guard for i, guard in enumerate(guards) if i not in free]


def _is_same_there(recorded: Recording, other: Recording) -> bool:
    """Whether the graph, without its guards, gives what the model does at sizes where that makes other calls."""
    runner, call = recorded.runner, (other.runner.args, other.runner.kwargs)
    key = f"{[tuple(shape) for shape in shapes_of(call)]} {runner.training} {sorted(runner.otherwise or ())}"
    if key not in runner.same_at and not any(tensor.is_meta for tensor in parameters_and_buffers(runner.model)):
        traced = assemble(runner.model, recorded.builder, lambda tensor: tensor.detach().clone())
        expected, got = (outputs_of(runner, module, call, runner.training) for module in (runner.model, traced))
        if expected is not None and got is not None and are_same(expected, got):
            runner.same_at.add(key)
    return key in runner.same_at


@dataclass(frozen=True)
class _Trial:
    """A recording at another size that makes the same calls.

    Attributes:
        guards: its guards, one for each of the example's.
        partner: its node for each of the example's.
        literals: the numbers that are others, by their places in the example's.
    """

    guards: Sequence[Guard]
    partner: Mapping[fx.Node, fx.Node]
    literals: Mapping[_Place, Any]

    def shape_of(self, node: fx.Node) -> Sequence[int]:
        """The shape there of what one of the example's nodes gives."""
        shape: Sequence[int] = self.partner.get(node, node).meta["value"].shape
        return shape


def _other_calls(args: Any, kwargs: Any) -> Iterator[list[Call]]:
    """Calls with other sizes of one dimension, wherever that is, and of all positions."""
    sizes = sorted({(d, n) for tensor in trees.tensors((args, kwargs)) for d, n in enumerate(tensor.shape)})
    for changed in (*({size} for size in sizes), None):
        yield [resized((args, kwargs), changed, other) for other in _OTHERS]


def resized(call: Call, changed: set[tuple[int, int]] | None, other: Callable[[int], int]) -> Call:
    """A call with other sizes of these dimensions, each given by its place and size; None stands for all positions."""

    def larger_or_smaller(tensor: Tensor) -> Tensor:
        for d, n in enumerate(tensor.shape):
            if (d, n) in changed if changed is not None else is_position(tensor, d):
                tensor = tensor.index_select(d, torch.arange(other(n), device=tensor.device) % n)
        return tensor

    other_call: Call = trees.map_tensors(larger_or_smaller, call)
    return other_call


def shapes_of(call: Call) -> tuple[torch.Size, ...]:
    """The shapes of all tensors of a call."""
    return tuple(tensor.shape for tensor in trees.tensors(call))


def _recordings(
    runner: Runner, calls: list[Call], tried: set[tuple[torch.Size, ...]], leaves: Leaves, kept: set[str]
) -> Iterator[Recording]:
    """Those of calls of other shapes than the ones tried, which the model takes."""
    for args, kwargs in calls:
        shapes = shapes_of((args, kwargs))
        if shapes not in tried and all(map(torch.Size.numel, shapes)):
            tried.add(shapes)
            with suppress(FxpruneError):
                yield replace(runner, args=args, kwargs=kwargs).record(leaves, kept)


def _trial(recorded: Recording, other: Recording) -> _Trial | None:
    """None where it makes other calls, or has other numbers than those of reshaped tensors.

    Where a branch is another one and the calls are the same, both branches do the same.
    """
    guards = recorded.sizes.guards, other.sizes.guards
    alike = all(_agree(*pair) or _is_other_branch(*pair) for pair in zip(*guards, strict=False))
    if len(guards[0]) != len(guards[1]) or not alike:
        return None
    constants = recorded.builder.constants, other.builder.constants
    nodes = [[node for node in each.builder.graph.nodes if _counts(node)] for each in (recorded, other)]
    if len(nodes[0]) != len(nodes[1]) or not same_constants(*constants):
        return None
    partner = dict(zip(*nodes, strict=True))
    literals: list[Literal] = []
    for ours, theirs in partner.items():
        given, found = ((node.args, node.kwargs) for node in (ours, theirs))
        differ = (ours.op, ours.target) != (theirs.op, theirs.target)
        if differ or arguments_differ(ours, given, found, (), partner, literals):
            return None
    if not all(_reshapes(literal.node) for literal in literals):
        return None
    return _Trial(other.sizes.guards, partner, {(each.node, each.place): each.train_value for each in literals})


def _reshapes(node: fx.Node) -> bool:
    sources = [argument for argument in node.args[:1] if isinstance(argument, fx.Node)]
    return name_of_op(node.target) in _RESHAPES and bool(sources) and "loop" not in node.meta


def _counts(node: fx.Node) -> bool:
    return node.op != "get_attr" and not is_unused_piece(node)


# --- guards -----------------------------------------------------------------------------------------------------------


def _is_refused(ours: Sequence[Guard], theirs: Sequence[Guard]) -> bool:
    """Whether the graph checks something that is otherwise there."""
    for own, other in zip(ours, theirs, strict=False):
        if not _agree(own, other):
            own_number = own.function is operator.pos and own.loop is None
            return _is_alike(own, other) and (own_number or _is_other_branch(own, other))
    return False


def _agree(ours: Guard, theirs: Guard) -> bool:
    """Whether the code did the same, for the same reason or since a number out of sight is the size that it is."""
    if not _is_alike(ours, theirs):
        return False
    return not _moves(ours, theirs) or ours.elsewhere or (_finds_size(ours) and _finds_size(theirs))


def _is_other_branch(ours: Guard, theirs: Guard) -> bool:
    """Whether the same comparison had another outcome."""
    known = _numbers_in(ours.operands) == _numbers_in(theirs.operands)
    return _is_alike(ours, theirs) and known and isinstance(ours.traced, bool) and ours.traced != theirs.traced


def _is_alike(ours: Guard, theirs: Guard) -> bool:
    return (ours.function, ours.call, ours.loop, ours.elsewhere, *map(_kind, ours.operands)) == (
        theirs.function, theirs.call, theirs.loop, theirs.elsewhere, *map(_kind, theirs.operands)
    )  # fmt: skip


def _kind(operand: Any) -> Any:
    """How a number is computed, without the numbers."""
    if isinstance(operand, (tuple, list)):
        return tuple(map(_kind, operand))
    if not isinstance(operand, TracedNumber):
        return type(operand)
    known = operand.operands if operand.function is read_size else map(_kind, operand.operands)
    return operand.function, *map(str, known)


def _moves(ours: Guard, theirs: Guard) -> bool:
    """Whether the code relies on another number there."""
    return (ours.traced, _numbers_in(ours.operands)) != (theirs.traced, _numbers_in(theirs.operands))


def _numbers_in(operand: Any) -> Any:
    """The numbers that do not come from sizes in sight."""
    if isinstance(operand, (tuple, list)):
        return [*map(_numbers_in, operand)]
    if isinstance(operand, TracedNumber):
        return [] if operand.function is read_size else _numbers_in(operand.operands)
    return operand


def _finds_size(guard: Guard) -> bool:
    return guard.function in (operator.eq, operator.ne) and guard.finds_size


def _tied(ours: Sequence[Guard], theirs: Sequence[Guard]) -> Iterator[int]:
    """The guards whose numbers are others where the model makes other calls."""
    alike = True
    for i, guard in enumerate(ours):
        alike = alike and i < len(theirs) and _is_alike(guard, theirs[i])
        if not alike or _moves(guard, theirs[i]):
            yield i


# --- numbers ----------------------------------------------------------------------------------------------------------


def _numbers(trials: Sequence[_Trial]) -> dict[_Place, range | None]:
    """For each number that differs in a trial, the dimensions of what is reshaped whose sizes it is the product of."""
    found: dict[_Place, range | None] = {}
    for place in dict.fromkeys(place for trial in trials for place in trial.literals):
        node, where = place
        source: Any = node.args[0]
        number: Any = (node.args, node.kwargs)
        for key in where:
            number = number[key]
        seen: list[tuple[int, Sequence[int]]] = [(number, source.meta["value"].shape)]
        seen += [(trial.literals.get(place, number), trial.shape_of(source)) for trial in trials]
        ndim = len(seen[0][1])
        runs = (range(d, d + length) for length in range(1, ndim + 1) for d in range(ndim - length + 1))
        found[place] = next(
            (run for run in runs if all(math.prod(sizes[d] for d in run) == n for n, sizes in seen)), None
        )
    return found


def _compute(recorded: Recording, node: fx.Node, place: tuple[Any, ...], dims: range) -> None:
    """Put the product of sizes of what a node reshapes in place of a number."""
    builder, sizes = recorded.builder, recorded.sizes
    source: Any = node.args[0]

    def product(one: TracedInt, other: TracedInt) -> Any:
        return traced_number(sizes, operator.mul, (one, other), plain(one) * plain(other))

    number = functools.reduce(product, (sizes.size(source, d, source.meta["value"].shape[d]) for d in dims))
    with builder.scopes.within(builder.calls[node]), builder.graph.inserting_before(node):
        node.args, node.kwargs = replaced((node.args, node.kwargs), place, number.node())

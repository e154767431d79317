"""Branches for one size, as `mask = self.mask if x.shape[2] == 64 else self.make_mask(x.shape[2])`.

The graph has one of both branches. The one for the size that the code names would tie it to that size. The other one is
good for all sizes if it computes the same for that one too, with no more FLOPs, so both are tried. Where the example
has taken the other one already, that is done at the size that the code names: 1, for a single sample or step, or the
one that a table was made for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.flops import count_flops
from fxprune.running import trees
from fxprune.running.calls import Call
from fxprune.running.copies import parameters_and_buffers
from fxprune.tracing.assembly import assemble
from fxprune.tracing.guards import insert_guards, named_sizes
from fxprune.tracing.modes import drop_unused_pieces
from fxprune.tracing.number_trials import compute_unseen_numbers, resized, shapes_of
from fxprune.tracing.runs import Leaves, Recording, Runner
from fxprune.tracing.same_outputs import are_same, outputs_of
from fxprune.tracing.size_nodes import RESIZES
from fxprune.tracing.user_code import Place

__all__ = ["OTHER_BRANCHES", "right_for_all_sizes"]

# Among the values that were read of a model: the places where another branch was taken.
OTHER_BRANCHES = "branches for other sizes"

# Inputs of the trials have this many times the entries of the example, or fewer. Not tuned.
_MOST_ENTRIES = 16


@dataclass(frozen=True)
class _Trial:
    """A call, what the model gives for it, and where its code finds there the size that it names, and not before."""

    call: Call
    training: bool
    outputs: list[Tensor]
    finds_it: frozenset[Place]


def right_for_all_sizes(runner: Runner, recorded: Recording, leaves: Leaves) -> frozenset[Place]:
    """The places in the model's code where the branch for other sizes does at the example's what the one for it does.

    If there are such branches, the model and the graphs with the other branches run in float64: in eval and training,
    with weights and inputs that are not special, and with each dimension of the inputs twice as large or one less. For
    branches for a size that the example has not, a dimension or all positions have that size.
    """
    if OTHER_BRANCHES in runner.earlier_values:
        # A model without values, as one that a file is loaded into.
        return frozenset(runner.earlier_values[OTHER_BRANCHES])
    if any(tensor.is_meta for tensor in parameters_and_buffers(runner.model)):
        return frozenset()
    found, seen = frozenset[Place](), set[Place]()
    while places := named_sizes(recorded.builder, recorded.sizes) - seen:
        seen |= places
        more = _right_among(replace(runner, otherwise=found), recorded, places, leaves)
        if not more:
            break
        # The code of the other branch may ask for sizes, too.
        found |= more
        recorded = replace(runner, otherwise=found).record(leaves, set())
    return found


def _right_among(runner: Runner, recorded: Recording, places: set[Place], leaves: Leaves) -> frozenset[Place]:
    """Those of these places."""
    found_there = {guard.place for guard in recorded.sizes.guards if guard.finds_size}
    unfound = frozenset(places - found_there)
    # No size is below 0, as what the code makes of one and compares with a number may be.
    named = {guard.named for guard in recorded.sizes.guards if guard.place in unfound and guard.named[0] > 0}
    divisors = {
        (guard.place, guard.divisor) for guard in recorded.sizes.guards if guard.divisor and guard.place in places
    }
    others = bool(places - unfound - {place for place, _ in divisors})
    calls = [(call, frozenset[Place]()) for call in _calls(runner, {n for _, n in divisors if n}, others=others)]
    found_in = [(call, _finds(runner, call, leaves, unfound)) for call in _calls_of(runner, named)]
    calls += [(call, there) for call, there in found_in if there]
    # One dimension may be a multiple where another is none.
    mixed = [(call, there) for call, there in found_in if not there]
    mixed += [(call, frozenset[Place]()) for call in _smaller(calls[0][0]) if not others]
    trials = _Trials(_run_trials(runner, calls)), _Trials(_run_trials(runner, mixed))
    finds = frozenset[Place]().union(*(trial.finds_it for trial in trials[0])) if unfound else frozenset[Place]()
    places -= unfound - finds
    flops = functools.cache(lambda: count_flops(runner.model, runner.kwargs or runner.args))
    before = found = runner.otherwise or frozenset()
    together = {there & places for _, there in calls if there & places}
    for tried in dict.fromkeys((frozenset(places), *together, *(frozenset({place}) for place in sorted(places)))):
        # To interpolate to the same size costs some FLOPs, and what is missing to a multiple may be a whole one.
        for more in (tried, tried | {RESIZES}):
            other = replace(runner, otherwise=found | more)
            if not tried <= found and _gives(trials, other, tried & finds, leaves, flops):
                found |= more
    return found - before


class _Trials:
    """Trials that are run when they are needed, once."""

    def __init__(self, waiting: Iterator[_Trial]) -> None:
        self._waiting, self._done = waiting, list[_Trial]()

    def __iter__(self) -> Iterator[_Trial]:
        yield from self._done
        for trial in self._waiting:
            self._done.append(trial)
            yield trial


def _run_trials(runner: Runner, calls: Sequence[tuple[Call, frozenset[Place]]]) -> Iterator[_Trial]:
    for training in (False, True):
        for call, finds_it in calls:
            # A graph that is traced again may refuse it.
            with suppress(FxpruneError):
                if (outputs := outputs_of(runner, runner.model, call, training)) is not None:
                    yield _Trial(call, training, outputs, finds_it)


def _calls(runner: Runner, divisors: Iterable[int] = (), *, others: bool) -> Iterator[Call]:
    """The example with random numbers, and larger or smaller ones.

    Args:
        runner: of the model.
        divisors: for each, all positions are larger by it, and smaller by one.
        others: whether also each dimension is twice as large, and smaller by one.
    """
    generator = torch.Generator().manual_seed(0)
    example: Call = trees.map_tensors(
        lambda x: torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x,
        (runner.args, runner.kwargs),
    )
    yield example
    for divisor in sorted(divisors):
        yield resized(example, None, lambda n, divisor=divisor: n + divisor)  # type: ignore[misc]
    if divisors:
        yield resized(example, None, lambda n: max(n - 1, 1))
    if others:
        yield from _smaller(example)
    for d, n in _dimensions(example) if others else ():

        def twice(x: Tensor, d: int = d, n: int = n) -> Tensor:
            return torch.cat([x, x.flip(d)], d) if x.ndim > d and x.shape[d] == n else x

        yield trees.map_tensors(twice, example)


def _calls_of(runner: Runner, named: set[tuple[int, int]]) -> Iterator[Call]:
    """The example with one dimension, or all positions, of each size that the code names, or larger by as much.

    Args:
        runner: of the model.
        named: these sizes, each with the one that is there in the example.
    """
    example = next(_calls(runner, others=False))
    tried = {shapes_of(example)}
    for (number, size), changed in itertools.product(sorted(named), (*({each} for each in _dimensions(example)), None)):
        for other in (lambda n, number=number: number, lambda n, number=number, size=size: n * number // max(size, 1)):
            call = resized(example, changed, other)
            if shapes_of(call) not in tried and _entries(call) <= _MOST_ENTRIES * _entries(example):
                tried.add(shapes_of(call))
                yield call


def _entries(call: Call) -> int:
    return sum(map(Tensor.numel, trees.tensors(call)))


def _dimensions(call: Call) -> list[tuple[int, int]]:
    """The places of dimensions and their sizes, of all tensors."""
    return sorted({(d, n) for tensor in trees.tensors(call) for d, n in enumerate(tensor.shape)})


def _smaller(call: Call) -> Iterator[Call]:
    """A call with each dimension smaller by one."""
    for d, n in _dimensions(call):
        yield _narrowed(call, d, n, n - 1)


def _narrowed(call: Call, d: int, n: int, size: int) -> Call:
    narrowed: Call = trees.map_tensors(
        lambda x: x.narrow(d, 0, size) if x.ndim > d and x.shape[d] == n > 1 else x, call
    )
    return narrowed


def _finds(runner: Runner, call: Call, leaves: Leaves, unfound: frozenset[Place]) -> frozenset[Place]:
    """Those of these places where the code finds in this call the size that it names; if not 1, whenever it asks."""
    args, kwargs = call
    try:
        guards = replace(runner, args=args, kwargs=kwargs).record(leaves, set()).sizes.guards
    except FxpruneError:
        return frozenset()
    asked = [guard for guard in guards if guard.place in unfound]
    missed = {guard.place for guard in asked if not guard.finds_size and guard.named[0] != 1}
    return frozenset(guard.place for guard in asked if guard.place and guard.finds_size) - missed


def _gives(
    trials: tuple[_Trials, _Trials], runner: Runner, unseen: frozenset[Place], leaves: Leaves, flops: Callable[[], int]
) -> bool:
    """Whether the graphs with the other branches give these outputs for no more FLOPs.

    Args:
        trials: the calls of the model; the second ones matter if something is filled up to a multiple.
        runner: of the model, with the other branches.
        unseen: those that have to be seen at the size that the code names: what the graph does not take there shows
            nothing.
        leaves: modules that the user wants whole.
        flops: of the model.
    """
    graphs: dict[bool, nn.Module] = {}
    known = False
    fills: set[Any] = set()
    for trial in itertools.chain(trials[0], (trial for kind in trials[1:] if fills for trial in kind)):
        training = trial.training
        try:
            if training not in graphs:
                recorded = runner.record_training(leaves, set()) if training else runner.record(leaves, set())
                compute_unseen_numbers(recorded.runner, recorded, leaves, set())
                # The outputs show whether further steps are alike.
                recorded.builder.confirmed_loops |= set(range(recorded.builder.loops))
                insert_guards(recorded.builder, recorded.sizes)
                drop_unused_pieces(recorded.builder.graph)
                fills |= recorded.sizes.filled
                graphs[training] = assemble(runner.model, recorded.builder, lambda tensor: tensor.detach().clone())
            got = outputs_of(runner, graphs[training], trial.call, training)
        except FxpruneError:
            if training not in graphs:
                return False
            # Refused at this size because of other branches.
            continue
        if got is None or not are_same(trial.outputs, got):
            return False
        # That takes less time than the other trials.
        if not known and not _costs_no_more(graphs[training], runner, flops):
            return False
        known, unseen = True, unseen - trial.finds_it
    return known and not unseen


def _costs_no_more(graph: nn.Module, runner: Runner, flops: Callable[[], int]) -> bool:
    """Whether a graph has the FLOPs of the model; without resizing that the model does not need, all of them."""
    with suppress(FxpruneError):
        counted, whole = count_flops(graph, runner.kwargs or runner.args), flops()
        return counted == whole if RESIZES in (runner.otherwise or ()) else counted <= whole
    return False

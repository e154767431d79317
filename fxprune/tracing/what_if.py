"""What the graph would be if the model's code were told something else: where it differs, the graph gets checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import fx

from fxprune.errors import FxpruneError
from fxprune.tracing.checks import check_device, check_dtype, check_fact, check_grad_mode, check_state
from fxprune.tracing.facts import GRAD_MODE, INFERENCE_MODE, DeviceRead, Fact, TypeRead
from fxprune.tracing.gradient_calls import GRADIENTS_DIFFER
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.limits import TypeUse, limit_of
from fxprune.tracing.modes import Literal, compare
from fxprune.tracing.runs import Leaves, Recording, Runner

__all__ = ["followed", "in_training_with_gradients", "insert_fact_checks", "settle_types"]

# They give the same entries in another layout.
_LAYOUTS = frozenset({"contiguous"})
# A fact, or the read of a dtype or device with the dtypes or the type of device for which the code goes another way.
Followed: TypeAlias = "Fact | tuple[TypeRead, list[torch.dtype]] | tuple[DeviceRead, str]"
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def followed(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> list[Followed]:
    """What the model's code follows, of all that it has asked; dtypes with those for which it goes another way.

    The model is recorded once more for each kind of question, if its code asks any.
    """
    facts = recorded.facts
    found: list[Followed] = [*facts.kinds]
    for asked in dict.fromkeys(fact.asked for fact in facts.asked):
        if _differs(replace(runner, other_answer=asked), recorded, leaves, kept):
            found.extend(fact for fact in facts.asked if fact.asked == asked)
    other = "cpu" if recorded.device.type == "cuda" else "cuda"
    if facts.devices and _differs(replace(runner, device=torch.device(other)), recorded, leaves, kept):
        found.extend((read, other) for read in facts.devices)
    refused: dict[torch.dtype, bool] = {}
    for dtypes in _alike(facts.types):
        differs = _differs(replace(runner, dtype=dtypes[0]), recorded, leaves, kept)
        refused |= dict.fromkeys(dtypes, differs)
    for read in facts.types:
        if others := [dtype for dtype, differs in refused.items() if differs and dtype != read.dtype]:
            found.append((read, others))
    return found


def _differs(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> bool:
    try:
        other = runner.record(leaves, kept)
    except FxpruneError:
        # It refuses this, or depends on values then.
        return True
    recorded.builder.remarks.extend(each for each in other.builder.remarks if each.startswith(GRADIENTS_DIFFER))
    differences = compare(recorded.builder, other.builder, ignored=_LAYOUTS)
    # A tensor that a function makes learns nothing, whether or not it is to have a gradient.
    followed = [literal for literal in differences.literals if literal.place[-1] != "requires_grad"]
    return bool(differences.scopes or followed)


def _alike(reads: list[TypeRead]) -> Iterator[list[torch.dtype]]:
    """The dtypes to try, in lists of those for which all comparisons give the same."""
    traced = {read.dtype for read in reads}
    compared = frozenset[torch.dtype]().union(*(read.compared for read in reads))
    yield from ([dtype] for dtype in sorted(compared - traced, key=str))
    if traced & compared and (others := _FLOATS - compared - traced):
        yield sorted(others, key=str)


def settle_types(runner: Runner, recorded: Recording, leaves: Leaves, kept: set[str]) -> None:
    """Find out which types the model's code has read from tensors, where that was a guess: it may also name them.

    Those that it has read are others where the model is recorded in another type.
    """
    uses = recorded.builder.type_uses
    if all(use.certain or not use.reads for use in uses):
        return
    other = torch.float32 if any(use.dtype == torch.float64 for use in uses) else torch.float64
    try:
        there = dict(_by_place(replace(runner, dtype=other).record(leaves, kept).builder.type_uses))
    except FxpruneError:
        there = dict[Any, TypeUse]()
    names = {node.name: node for node in recorded.builder.graph.nodes}
    for place, use in _by_place(uses):
        again = there.get(place)
        if use.certain or (again is None and any(read.target is limit_of for read in use.reads)):
            continue
        source = None
        if again is not None and again.dtype != use.dtype and again.node is not None:
            source = names.get(again.node.name)
        for read in use.reads:
            if source is not None:
                read.args = (source, *read.args[1:])
            else:
                _replace_by_value(read)


def _by_place(uses: list[TypeUse]) -> Iterator[tuple[Any, TypeUse]]:
    """Uses of types by their places, each with how often there was one before."""
    seen: Counter[Any] = Counter()
    for use in uses:
        yield (use.place, seen[use.place]), use
        seen[use.place] += 1


def _replace_by_value(node: fx.Node) -> None:
    def value(each: fx.Node) -> Any:
        return node.meta["value"] if each is node else each

    for user in [*node.users]:
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), value)


def insert_fact_checks(builder: GraphBuilder, facts: list[Followed]) -> None:
    """Put checks into the graph that these facts are as in the trace."""
    done = set()
    for found in facts:
        fact = found if isinstance(found, Fact) else found[0]
        call, node = fact.call, fact.node
        where = f"`{call[0] or type(builder.root).__name__}`"
        asked = fact.asked if isinstance(fact, Fact) else type(fact).__name__
        key = (node, asked, str(getattr(fact, "arguments", "") if isinstance(found, Fact) else found[1]))
        if key in done:
            continue
        done.add(key)
        with builder.scopes.within(call), builder.graph.inserting_before(_first_after(builder.graph, node)):
            if isinstance(found, tuple):
                read, refused = found
                check = check_device if isinstance(read, DeviceRead) else check_dtype
                builder.create_check(check, (read.node, refused, read.node.name, where))
            elif found.asked == INFERENCE_MODE:
                name = "is_inference_mode_enabled"
                builder.create_check(check_state, (name, found.answer, INFERENCE_MODE, where))
            elif found.asked == GRAD_MODE or node is None:
                builder.create_check(check_grad_mode, (found.answer, GRAD_MODE, where))
            else:
                builder.create_check(
                    check_fact, (node, found.asked, dict(found.arguments), found.answer, node.name, where)
                )


def in_training_with_gradients(builder: GraphBuilder) -> list[Literal]:
    """Where a graph that knows eval alone asks for the grad mode: in training it is the other one."""
    return [Literal(node, (0, 0), False, True) for node in builder.graph.nodes if node.target is check_grad_mode]


def _first_after(graph: fx.Graph, node: fx.Node | None) -> fx.Node:
    """The first node after another, or of all, that is no placeholder."""
    nodes: list[fx.Node] = list(graph.nodes)
    later = nodes[0 if node is None else nodes.index(node) + 1 :]
    found: fx.Node = next(each for each in later if each.op != "placeholder")
    return found

"""What the graph would be if the model's code were told something else: where it differs, the graph gets checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from types import CodeType
from typing import TypeAlias

import torch
from torch import fx

from fxprune.errors import FxpruneError
from fxprune.tracing.checks import check_device, check_dtype, check_fact, check_grad_mode, check_state
from fxprune.tracing.facts import GRAD_MODE, GRADIENT_FACTS, INFERENCE_MODE, DeviceRead, Fact, TypeRead
from fxprune.tracing.gradient_calls import GRADIENTS_DIFFER
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.limits import CallPlace
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
    questions = dict.fromkeys(fact.asked for fact in facts.asked)
    if not GRADIENT_FACTS.isdisjoint(questions):
        # The code may have asked no more once it knew that a tensor has no gradients.
        questions[GRAD_MODE] = None
    differ = [asked for asked in questions if _differs(replace(runner, other_answer=asked), recorded, leaves, kept)]
    refused = {*differ, *(GRADIENT_FACTS if GRAD_MODE in differ else ())}
    found.extend(fact for fact in facts.asked if fact.asked in refused)
    other = "cpu" if recorded.device.type == "cuda" else "cuda"
    if facts.devices and _differs(replace(runner, device=torch.device(other)), recorded, leaves, kept):
        found.extend((read, other) for read in facts.devices)
    other_way: dict[torch.dtype, bool] = {}
    for dtypes in _alike(facts.types):
        differs = _differs(replace(runner, dtype=dtypes[0]), recorded, leaves, kept)
        other_way |= dict.fromkeys(dtypes, differs)
    for read in facts.types:
        if others := [dtype for dtype, differs in other_way.items() if differs and dtype != read.dtype]:
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


def settle_types(recorded: Recording, leaves: Leaves, kept: set[str]) -> bool:
    """Find out which types the model's code has read from tensors, where that was a guess: it may also name them.

    Those that it has read are others where the model is recorded in another type.

    Returns:
        Whether a guess was wrong; another recording will be right.
    """
    runner, uses = recorded.runner, recorded.builder.type_uses
    guesses = [use for use in uses if not use.certain]
    if not guesses:
        return False
    other = torch.float32 if any(use.dtype == torch.float64 for use in uses) else torch.float64
    found: dict[CallPlace, set[CodeType | None]] = {}
    with suppress(FxpruneError):
        for use in replace(runner, dtype=other).record(leaves, kept).builder.type_uses:
            found.setdefault(use.place, set()).add(use.reader if use.dtype == other else None)
    for use in guesses:
        readers = found.get(use.place, set())
        # Where that says nothing, limits are rather those of a tensor's type, and types those that they were.
        runner.types[use.place] = next(iter(readers)) if len(readers) == 1 else use.reader if use.of_limits else None
    return any(runner.types[use.place] is not use.reader for use in guesses)


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

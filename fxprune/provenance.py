"""What a pruned model knows of its pruning: its plan, its original, and what was done since."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx, nn

from fxprune.errors import FxpruneError
from fxprune.planning.plan import Plan, composed, plan_since
from fxprune.tracing.fingerprint import Fingerprint, fingerprint
from fxprune.tracing.notes import notes_in, set_trace_notes, trace_notes

__all__ = [
    "PruningNotes", "check_order", "earlier_notes", "earlier_stage", "is_compensated", "plan_from", "plan_of",
    "pruning_notes", "set_pruning_notes", "take_notes",
]  # fmt: skip

_KEY = "fxprune.pruning"


@dataclass(frozen=True, eq=False)
class PruningNotes:
    """What a pruned model knows of its pruning.

    Attributes:
        plan: what was kept of the original.
        original: the architecture that was pruned; of a model that was pruned several times, before the first time.
        compensated: the corrections that `fxprune.compensate` made to the weights.
        stages: of a model that was pruned several times, the plans before the last, each for the original.
        samples: what the samples were if the user gave none, in one line.
        method: how the channels were scored, if `fxprune.prune` chose them.
    """

    plan: Plan
    original: Fingerprint
    compensated: tuple[str, ...] = ()
    stages: tuple[Plan, ...] = ()
    samples: str = ""
    method: str = ""


def pruning_notes(pruned: nn.Module) -> PruningNotes:
    """The notes of a pruned model.

    Raises:
        FxpruneError: the model was not made by `fxprune.prune` or `fxprune.rewrite`.
    """
    notes = _notes_in(pruned)
    if notes is None:
        name = type(pruned).__name__
        raise FxpruneError(f"{name} has no plan: only what fxprune.prune or fxprune.rewrite returns has one")
    return notes


def is_compensated(model: nn.Module) -> bool:
    """Whether `fxprune.compensate` has corrected the weights of a model."""
    notes = _notes_in(model)
    return notes is not None and bool(notes.compensated)


def _notes_in(model: object) -> PruningNotes | None:
    meta = getattr(model, "meta", None)
    notes = meta.get(_KEY) if isinstance(meta, dict) else None
    return notes if isinstance(notes, PruningNotes) else None


def earlier_notes(model: nn.Module) -> PruningNotes | None:
    """The notes of a pruned model or of a trace of one; None for any other model."""
    own = _notes_in(model)
    earlier = trace_notes(model).traced_from.get(_KEY)
    return own or (earlier if isinstance(earlier, PruningNotes) else None)


def take_notes(traced: fx.GraphModule, pruned: fx.GraphModule, plan: Plan) -> None:
    """Give a pruned model its notes: those of the model before the first pruning, where that is known."""
    architecture, trace, first = fingerprint(traced), trace_notes(traced), earlier_notes(traced)
    if first is not None and _is_made_by(first, architecture):
        set_trace_notes(pruned, trace.after(notes_in(trace.traced_from)))
        set_pruning_notes(pruned, replace(first, plan=composed(first.plan, plan), stages=(*first.stages, first.plan)))
    else:
        set_trace_notes(pruned, replace(trace, traced_from={}))
        set_pruning_notes(pruned, PruningNotes(plan, architecture))


def _is_made_by(notes: PruningNotes, architecture: Fingerprint) -> bool:
    """Whether an architecture is what the plan makes of the original, and was not changed in other ways since."""
    gone = notes.plan.gone
    for name, (shape, _) in notes.original.tensors.items():
        kept = notes.plan.kept.get(name, {})
        expected = tuple(n if n == 1 else len(kept.get(d, range(n))) for d, n in enumerate(shape))
        if name in gone:
            continue
        if name not in architecture.tensors or architecture.tensors[name][0] != expected:
            return False
    return True


def set_pruning_notes(pruned: fx.GraphModule, notes: PruningNotes) -> None:
    """Give a pruned model its notes."""
    pruned.meta[_KEY] = notes


def plan_of(pruned: nn.Module) -> Plan:
    """The plan that a pruned model was made by.

    Raises:
        FxpruneError: the model was not made by `fxprune.prune` or `fxprune.rewrite`.
    """
    return pruning_notes(pruned).plan


def earlier_stage(original: nn.Module, pruned: nn.Module) -> PruningNotes | None:
    """The notes of a model given as original, if that was pruned from the same one; None if it is no pruned model."""
    notes = earlier_notes(original)
    return notes if notes is not None and notes.original == pruning_notes(pruned).original else None


def plan_from(original: nn.Module, pruned: nn.Module) -> Plan:
    """The plan by which a pruned model was made from this one.

    Args:
        original: the model before pruning; of a model that was pruned several times, before any of them.
        pruned: what was made of it.

    Raises:
        FxpruneError: it was made from another model.
    """
    notes, earlier = pruning_notes(pruned), earlier_stage(original, pruned)
    if earlier is not None:
        try:
            return plan_since(earlier.plan, notes.plan)
        except ValueError:
            raise FxpruneError(
                f"the {type(original).__name__} given as original was pruned itself, and this model was not made from "
                "it: it keeps what is missing there. Give the model that was pruned"
            ) from None
    for name, parameter in original.named_parameters(remove_duplicate=False):
        shape = notes.original.tensors.get(name, (tuple(parameter.shape), ""))[0]
        if name in notes.plan.kept and tuple(parameter.shape) != shape:
            raise FxpruneError(
                f"{name} has shape {tuple(parameter.shape)}, and had {shape} when the plan was made: this is not the "
                "model that was pruned"
            )
    return notes.plan


def check_order(call: str, original: object, pruned: object) -> None:
    """Refuse an original and a pruned model in the wrong order, which older versions had, with the call to make.

    Raises:
        FxpruneError: one of them is not a model, or only the first was pruned.
    """
    for name, model in (("original", original), ("pruned", pruned)):
        if not isinstance(model, nn.Module):
            raise FxpruneError(f"{name} (a {type(model).__name__}) is not a model: call {call}")
    if _notes_in(original) is not None and _notes_in(pruned) is None:
        raise FxpruneError(f"original was pruned and pruned was not: the original comes first, call {call}")

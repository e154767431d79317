"""What a traced model knows of its trace: one value in its `meta`, which copies and pickles take along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxprune.models import Source
from fxprune.running.calls import Call, given_call
from fxprune.running.devices import on_device_of
from fxprune.tracing.caches import Key
from fxprune.tracing.constants import Place

__all__ = ["TraceNotes", "call_of", "example_of", "notes_in", "set_trace_notes", "trace_notes"]

_KEY = "fxprune.trace"


@dataclass(frozen=True, eq=False)
class TraceNotes:
    """What a traced model knows of its trace.

    Attributes:
        example_inputs: positional and keyword arguments of the traced call; None in a model that was not traced.
        remarks: what the tracer took as constant, in words.
        source: how the original is built, where that is known.
        values_read: values of tensors that the model's code has read; None for one too large to be saved.
        leaves: paths of the modules that the caller wanted as one node each.
        constant_places: where the model keeps each tensor that is a constant of the graph, by its name there.
        forgotten_keys: the keys of caches that the graph makes anew, where the model has run before.
        traced_from: the `meta` of the traced model, if that was a GraphModule: it may have been pruned before.
    """

    example_inputs: Call | None = None
    remarks: tuple[str, ...] = ()
    source: Source | None = None
    values_read: Mapping[str, Any] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()
    constant_places: Mapping[str, Place] = field(default_factory=dict)
    forgotten_keys: frozenset[Key] = frozenset()
    traced_from: Mapping[str, Any] = field(default_factory=dict)

    def after(self, first: TraceNotes) -> TraceNotes:
        """The notes of a model that was traced again, after a first trace whose notes these are, and pruning."""
        return TraceNotes(
            example_inputs=self.example_inputs,
            remarks=tuple(dict.fromkeys((*first.remarks, *self.remarks))),
            source=first.source,
            values_read={**self.values_read, **first.values_read},
            leaves=tuple(dict.fromkeys((*first.leaves, *self.leaves))),
            constant_places={**self.constant_places, **first.constant_places},
        )


def trace_notes(model: nn.Module) -> TraceNotes:
    """The notes of a traced model, or of a model made from one; empty ones for any other model."""
    meta = getattr(model, "meta", None)
    return notes_in(meta if isinstance(meta, dict) else {})


def notes_in(meta: Mapping[str, Any]) -> TraceNotes:
    """The notes in the `meta` of a traced model; empty ones if there are none."""
    notes = meta.get(_KEY)
    return notes if isinstance(notes, TraceNotes) else TraceNotes()


def set_trace_notes(traced: fx.GraphModule, notes: TraceNotes) -> None:
    """Give a traced model its notes."""
    traced.meta[_KEY] = notes


def call_of(model: nn.Module, example_inputs: Any = None) -> Call:
    """The call to try a model with: the given inputs, those it was traced with, or those that it was built for."""
    recorded = trace_notes(model).example_inputs
    if example_inputs is not None or recorded is None:
        return given_call(model, example_inputs)
    args, kwargs = on_device_of(model, recorded)
    return tuple(args), dict(kwargs)


def example_of(model: nn.Module) -> Any:
    """The inputs of `call_of` as `example_inputs` takes them: a tuple of arguments or a dict of keyword arguments."""
    args, kwargs = call_of(model)
    return kwargs or args

"""What a model keeps from one call to the next: tensors that `forward` replaces, and numbers that it changes.

Where forward computes with the old tensor, in eval or in training, and replaces it by one of the same size and type,
as recurrent units and running averages do, the graph writes the new one into the old. Attention maps that are kept for
inspection are no state, nor are tables made for another resolution: nothing is computed from the old ones.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from fxprune.running import trees
from fxprune.tracing.graph_builder import Origin, reads_layout
from fxprune.tracing.recorder import Recorder
from fxprune.tracing.spelling import first_few

__all__ = [
    "STATE_IS_LOST", "Numbers", "changed_numbers", "kept_numbers", "kept_tensors", "numbers_are_lost", "put_numbers",
    "values_are_lost", "write_state",
]  # fmt: skip

# How a remark starts that becomes a warning.
STATE_IS_LOST = "What is kept from call to call is not in the graph"
# Attributes of modules that are numbers, strings or None, by the path of the module and the name.
Numbers: TypeAlias = dict[tuple[str, str], "int | float | str | None"]
_NUMBERS = frozenset({bool, int, float, str, type(None)})


def kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The buffers and the tensors that are plain attributes, by name."""
    attributes = {
        f"{path}.{name}".removeprefix("."): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    return dict(model.named_buffers()) | attributes


def kept_numbers(model: nn.Module) -> Numbers:
    """The model's numbers."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in _NUMBERS
    }


def changed_numbers(model: nn.Module, before: Numbers) -> Numbers:
    """The numbers that forward has changed, as they are now."""
    # Traced numbers are left out by their type: they are sizes of this call.
    now = kept_numbers(model)
    return {place: now[place] for place, value in before.items() if place in now and now[place] != value}


def put_numbers(model: nn.Module, numbers: Numbers) -> None:
    """Give the model these numbers."""
    for (path, name), value in numbers.items():
        setattr(model.get_submodule(path), name, value)


def numbers_are_lost(model: nn.Module, numbers: Numbers) -> str:
    """The remark on numbers that change what the next call computes."""
    named = first_few([f"`{name}` of `{path or type(model).__name__}`" for path, name in numbers], 3)
    return (
        f"{STATE_IS_LOST}: forward changes {named}, and does something else in the next call. Every call of the graph "
        "does what the first would. If the model only warms up, run it once before it is traced or pruned."
    )


def values_are_lost(model: nn.Module, names: AbstractSet[str]) -> list[str]:
    """The remark on tensors whose entries decide what forward does, and into which it writes; none without names."""
    return [
        f"{STATE_IS_LOST}: what forward of `{type(model).__name__}` does depends on the values of {named}, into which "
        "it writes. Every call of the graph does what the first would. If the model only warms up, run it once before "
        "it is traced or pruned."
        for named in [first_few([f"`{name}`" for name in sorted(names)], 3)]
        if names
    ]


def write_state(
    recorder: Recorder, model: nn.Module, before: dict[str, Tensor], output: Any, read_elsewhere: AbstractSet[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Record that the tensors which forward has put in place of others are written into these.

    Args:
        recorder: of the call of forward.
        model: as forward has left it.
        before: the tensors that it had before, by name.
        output: what forward returned; a tensor that is part of it is not written into.
        read_elsewhere: the names of tensors that are state although forward has not computed with them now.

    Returns:
        The names of those that forward has computed with, and of those that it has replaced, but which are no state.
    """
    returned = {tensor.untyped_storage()._cdata for tensor in trees.tensors(output)}
    nodes = {name: recorder.builder.find(old) for name, old in before.items()}
    read = frozenset(name for name, node in nodes.items() if node is not None and _works_with(node))
    left: set[str] = set()
    for name, old in before.items():
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        new = getattr(owner, last, None)
        if new is old or not isinstance(new, Tensor) or not _is_computed_from_input(recorder, new):
            continue
        fits = new.shape == old.shape and new.dtype == old.dtype and old.untyped_storage()._cdata not in returned
        if fits and name not in read | read_elsewhere:
            left.add(name)
        elif fits:
            with recorder.scopes.within((path, 0)):
                recorder.call(Tensor.copy_, (old, new), {})
        elif nodes[name] is not None or name in read_elsewhere:
            recorder.builder.remarks.append(
                f"{STATE_IS_LOST}: the forward of `{path or type(model).__name__}` reads `{last}`, of shape "
                f"{tuple(old.shape)}, and puts a tensor of shape {tuple(new.shape)} in its place. The graph starts "
                "each call from what is there now. To keep it, run the model once on the example inputs before it is "
                "traced or pruned."
            )
    return read, frozenset(left)


def _is_computed_from_input(recorder: Recorder, tensor: Tensor) -> bool:
    node = recorder.builder.find(tensor)
    return node is not None and recorder.builder.origin[node] == Origin.INPUTS


def _works_with(node: fx.Node) -> bool:
    """Whether anything is computed from the entries of a node, and not from its size alone."""
    return not all(map(reads_layout, node.users))

"""What a model keeps from one call to the next: tensors that `forward` replaces, and what it keeps in Python.

Where forward computes with the old tensor, in eval or in training, and replaces it by one of the same size and type,
as recurrent units and running averages do, the graph writes the new one into the old. It does so too in a buffer of
which nothing is computed, as the last loss, if its size is fixed. Attention maps that are kept for inspection are no
state, nor are tables made for another resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.running import trees
from fxprune.tracing.fixed_sizes import all_fixed, fixed_sizes
from fxprune.tracing.graph_builder import GraphBuilder, Origin, computed_from, reads_layout
from fxprune.tracing.recorder import Recorder
from fxprune.tracing.spelling import first_few

__all__ = ["BUFFER_IS_LEFT", "STATE_IS_LOST", "kept_tensors", "state_is_lost", "values_are_lost", "write_state"]

# How a remark starts that becomes a warning.
STATE_IS_LOST = "What is kept from call to call is not in the graph"
BUFFER_IS_LEFT = "A buffer stays as it is"


def kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The buffers and the tensors that are plain attributes, by name."""
    attributes = {
        f"{path}.{name}".removeprefix("."): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    return dict(model.named_buffers()) | attributes


def state_is_lost(places: Sequence[str], error: Exception | None = None) -> str:
    """The remark on what is kept in Python at these places and changes the next call, or keeps it from being traced."""
    follows = "does something else in the next call" if error is None else f"its next call cannot be traced: {error}"
    return (
        f"{STATE_IS_LOST}: forward changes {first_few(places, 3)}, and {follows}. Every call of the graph does what "
        "the first would. If the model only warms up, run it once before it is traced or pruned."
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
        if new is old or not isinstance(new, Tensor) or not _is_other_in_each_call(recorder, new, nodes[name]):
            continue
        fits = new.shape == old.shape and new.dtype == old.dtype and old.untyped_storage()._cdata not in returned
        is_state, shown = name in read | read_elsewhere, last in owner._buffers
        if fits and (is_state or (shown and _has_fixed_size(recorder, new))):
            with recorder.scopes.within((path, 0)):
                if name in read:
                    _read_a_copy(recorder.builder, old)
                recorder.builder.stored[recorder.builder.node_of(new)] = recorder.builder.node_of(old)
                recorder.call(Tensor.copy_, (old, new), {})
        elif fits and not shown:
            left.add(name)
        elif shown and not is_state and (fits or nodes[name] is None):
            left.update([name] if fits else [])
            recorder.builder.remarks.append(
                f"{BUFFER_IS_LEFT}: the forward of `{path or type(model).__name__}` puts a tensor whose size follows "
                f"the input into `{last}`, and computes nothing from it. The graph leaves that buffer alone. Return "
                "the tensor, if it is needed."
            )
        elif nodes[name] is not None or name in read_elsewhere:
            recorder.builder.remarks.append(
                f"{STATE_IS_LOST}: the forward of `{path or type(model).__name__}` reads `{last}`, of shape "
                f"{tuple(old.shape)}, and puts a tensor of shape {tuple(new.shape)} in its place. The graph starts "
                "each call from what is there now. To keep it, run the model once on the example inputs before it is "
                "traced or pruned."
            )
    return read, frozenset(left)


def _read_a_copy(builder: GraphBuilder, old: Tensor) -> None:
    """Let what is computed from a tensor that is written into at the end read a copy, which autograd may keep."""
    graph, node = builder.graph, builder.node_of(old)
    while isinstance(first := next(iter(node.args), None), fx.Node) and first.name in node.meta.get("mutates", ()):
        node = first
    if node.op != "get_attr":
        return
    start = next(each for each in graph.nodes if each.op != "placeholder")
    if node is not start:
        start.prepend(node)
    with graph.inserting_after(node):
        value = node.meta["value"].detach()
        copied = builder.create_node("call_function", torch.clone, (node,), {}, value, builder.origin[node])
    node.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    for user in graph.nodes:
        if "mutates" in user.meta:
            user.meta["mutates"] = tuple(copied.name if name == node.name else name for name in user.meta["mutates"])
    builder.bind(old, node)


def _is_other_in_each_call(recorder: Recorder, tensor: Tensor, before: fx.Node | None) -> bool:
    """Whether a tensor is computed from the input, or from the one that it replaces."""
    node = recorder.builder.find(tensor)
    if node is None or recorder.builder.origin[node] == Origin.INPUTS:
        return node is not None
    return any(each is before for each in computed_from(node))


def _has_fixed_size(recorder: Recorder, tensor: Tensor) -> bool:
    builder = recorder.builder
    return all_fixed(fixed_sizes(builder.graph, builder.module)[builder.node_of(tensor)])


def _works_with(node: fx.Node) -> bool:
    """Whether anything is computed from the entries of a node, and not from its size alone."""
    return not all(map(reads_layout, node.users))

"""Recurrent layers: the input's channels, and the hidden ones, in all gates, layers and directions at once.

A hidden channel whose weights are zero stays at zero from one step to the next, if it starts there. Where an LSTM
projects its state (`proj_size`), the channels of the projection are what the next step and the next layer take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx, nn

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.rules.linear import contract
from fxprune.rules.registry import Call, Op, Rewrite, rule
from fxprune.rules.size import map_values

__all__ = ["recurrent_weights"]


def recurrent_weights(module: nn.Module) -> list[str]:
    """The weights whose columns are the channels that the layer itself made, in the step or in the layer before."""
    names = [name for name, _ in module.named_parameters(recurse=False)] if isinstance(module, _RECURRENT) else []
    return [name for name in names if name.startswith(("weight_hh", "weight_ih_l")) and not _is_first(name)]


_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def _is_first(name: str) -> bool:
    return name.removesuffix("_reverse") == "weight_ih_l0"


def _starts(state: Any) -> list[Labels]:
    return [] if state is None else [state] if isinstance(state, Labels) else list(state)


def _hidden(op: Op, suffixes: list[str], directions: int) -> tuple[Dim, Dim]:
    """The ids of the hidden channels, and of an LSTM's cell state, which are the same unless it projects.

    They are the same in every layer and direction, each with a number of gates.
    """
    first, projects = op.weight(f"weight_hh{suffixes[0]}"), op.weight(f"weight_hr{suffixes[0]}")
    assert first is not None
    hidden = first.dims[1]
    state = hidden if projects is None else projects.dims[1]
    for k, suffix in enumerate(suffixes):
        recurrent, of_input = op.weight(f"weight_hh{suffix}"), op.weight(f"weight_ih{suffix}")
        assert recurrent is not None
        assert of_input is not None
        for weight in (recurrent, of_input, op.weight(f"bias_ih{suffix}"), op.weight(f"bias_hh{suffix}")):
            rows = None if weight is None else weight.dims[0]
            if isinstance(rows, np.ndarray):
                _unite(op, state, op.unite_axis(rows.reshape(-1, size_of(state)), 1))
        projection = op.weight(f"weight_hr{suffix}")
        if projection is not None:
            op.freeze(projection.dims[1], _PROJECTED)
            _unite(op, state, projection.dims[1])
            _unite(op, hidden, projection.dims[0])
        _unite(op, hidden, recurrent.dims[1])
        if k >= directions:
            _unite(op, _times(hidden, directions), of_input.dims[1])
    return hidden, state


# torch takes an LSTM whose state is as wide as its projection for one without; a narrower projection never is.
_PROJECTED = "has to stay wider than its projection"


def _unite(op: Op, hidden: Dim, other: Dim) -> None:
    if size_of(hidden) > 1:
        op.unite(hidden, other)


def _times(dim: Dim, n: int) -> Dim:
    return dim * n if isinstance(dim, int) else np.tile(dim, n)


def _enter(op: Op, input: Labels, suffixes: list[str], dims: tuple[Dim, Dim], states: list[Labels]) -> None:
    for suffix in suffixes:
        weight = op.weight(f"weight_ih{suffix}")
        assert weight is not None
        contract(op, input, -1, weight, 1)
    for dim in input.dims[:-1]:
        op.freeze(dim, "a step or a sample of a recurrence")
    for given, own in zip(states, dims, strict=False):
        for dim in given.dims[:-1]:
            op.freeze(dim, "a layer or a sample of a recurrence")
        _unite(op, own, given.dims[-1])
        if not given.zero[-1] and is_labelled(own):
            op.freeze(own, "the recurrence starts where it is not zero")


def _shaped(op: Op, dim: Dim, shape: Any) -> Labels:
    return Labels((*shape[:-1], dim), (*(False,) * (len(shape) - 1), True))


def _packed_data(op: Op) -> Labels:
    """Of a packed sequence the tensor that holds the samples, step after step."""
    packed = op.node.args[0]
    assert isinstance(packed, fx.Node)
    data = packed.args[0]
    assert isinstance(data, fx.Node)
    op.enters_at(packed, data, 1)
    labels = op.labels_of[data.name]
    assert isinstance(labels, Labels)
    return labels


@rule("_pack_padded_sequence")
def pack(op: Op, input: Labels, lengths: Labels, batch_first: bool) -> Any:
    """Steps and samples become one dimension, of a size that the lengths give."""
    for dim in input.dims[:2]:
        op.freeze(dim, "a step or a sample of a recurrence")
    data, batch_sizes = op.value
    return Labels((len(data), *input.dims[2:]), (False, *input.zero[2:])), Labels.plain(batch_sizes.shape)


@rule("_pad_packed_sequence")
def pad(op: Op, data: Labels, batch_sizes: Labels, batch_first: bool, padding_value: float, total_length: int) -> Any:
    """The other way; between the end of a sample and that of the longest there is the padding."""
    padded, lengths = op.value
    zero = tuple(zero and padding_value == 0 for zero in data.zero[1:])
    return Labels((*padded.shape[:2], *data.dims[1:]), (False, False, *zero)), Labels.plain(lengths.shape)


@rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(op: Op, input: Any, hx: Any = None) -> Any:
    module: Any = op.module
    is_packed = not isinstance(input, Labels)
    data = _packed_data(op) if is_packed else input
    directions = 2 if module.bidirectional else 1
    suffixes = [f"_l{k}{end}" for k in range(module.num_layers) for end in ("", "_reverse")[:directions]]
    dims = _hidden(op, suffixes, directions)
    _enter(op, data, suffixes[:directions], dims, _starts(hx))
    output, last = op.value
    outer: Any = _shaped(op, _times(dims[0], directions), (output.data if is_packed else output).shape)
    if is_packed:
        outer = (outer, *map_values(tuple(output)[1:]))
    if isinstance(last, tuple):
        return outer, tuple(_shaped(op, dim, state.shape) for dim, state in zip(dims, last, strict=True))
    return outer, _shaped(op, dims[0], last.shape)


@rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(op: Op, input: Labels, hx: Any = None) -> Any:
    dims = _hidden(op, [""], 1)
    _enter(op, input, [""], dims, _starts(hx))
    if isinstance(op.value, tuple):
        return tuple(_shaped(op, dims[0], state.shape) for state in op.value)
    return _shaped(op, dims[0], op.shape)


@cell.flops
def _(op: Op, out: Any, input: Labels, hx: Any = None) -> list[Term]:
    """Of the recurrent layers fvcore counts only these: they are linear layers to it."""
    of_input, recurrent = op.weight("weight_ih"), op.weight("weight_hh")
    assert of_input is not None
    assert recurrent is not None
    return [term(*input.dims, of_input.dims[0]), term(*input.dims[:-1], recurrent.dims[1], recurrent.dims[0])]


@recurrent.rewrite
@cell.rewrite
def _(op: Rewrite, input: Any, hx: Any = None) -> Call | None:
    module: Any = op.module
    first = "weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight_ih"
    module.input_size = getattr(module, first).shape[1]
    projects = getattr(module, "proj_size", 0)
    setattr(module, "proj_size" if projects else "hidden_size", getattr(module, first.replace("ih", "hh")).shape[1])
    return None

"""Recurrent layers. A hidden channel goes from all gates, layers and directions at once.

A hidden channel whose weights are zero stays zero from step to step if it starts at zero. Where an LSTM projects its
state (`proj_size`), the channels of the projection enter the next step and the next layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, LabelTree, is_labelled, labels_in, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.flops import recurrent_factors
from fxprune.rules.linear import contract
from fxprune.rules.op import Op, UnsupportedCall, map_values
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["recurrent_weights"]


def recurrent_weights(module: nn.Module) -> list[str]:
    """The weights whose columns are channels of the layer itself, from the step or the layer before."""
    names = [name for name, _ in module.named_parameters(recurse=False)] if isinstance(module, _RECURRENT) else []
    return [name for name in names if name.startswith(("weight_hh", "weight_ih_l")) and not _is_first(name)]


_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def _is_first(name: str) -> bool:
    return name.removesuffix("_reverse") == "weight_ih_l0"


def _starts(state: Any) -> list[Labels]:
    """The states that a layer is given."""
    return [] if state is None else [state] if isinstance(state, Labels) else list(state)


def _hidden(op: Op, suffixes: list[str], directions: int) -> tuple[Dim, Dim]:
    """The channels of the hidden state and of an LSTM's cell state, which differ only if it projects.

    They are the same in every layer and direction, and each has a row for every gate.
    """
    hidden = op.weight(f"weight_hh{suffixes[0]}").dims[1]
    projects = op.find_weight(f"weight_hr{suffixes[0]}")
    state = hidden if projects is None else projects.dims[1]
    for k, suffix in enumerate(suffixes):
        recurrent, of_input = op.weight(f"weight_hh{suffix}"), op.weight(f"weight_ih{suffix}")
        biases = op.find_weight(f"bias_ih{suffix}"), op.find_weight(f"bias_hh{suffix}")
        for weight in (recurrent, of_input, *biases):
            rows = None if weight is None else weight.dims[0]
            if isinstance(rows, np.ndarray):
                _unite(op, state, op.unite_axis(rows.reshape(-1, size_of(state)), 1))
        projection = op.find_weight(f"weight_hr{suffix}")
        if projection is not None:
            op.freeze(projection.dims[1], _PROJECTED)
            _unite(op, state, projection.dims[1])
            _unite(op, hidden, projection.dims[0])
        _unite(op, hidden, recurrent.dims[1])
        if k >= directions:
            _unite(op, _times(hidden, directions), of_input.dims[1])
    return hidden, state


# torch treats an LSTM whose state is as wide as its projection as one without a projection.
_PROJECTED = "has to stay wider than its projection"


def _unite(op: Op, hidden: Dim, other: Dim) -> None:
    if size_of(hidden) > 1:
        op.unite(hidden, other)


def _times(dim: Dim, n: int) -> Dim:
    return dim * n if isinstance(dim, int) else np.tile(dim, n)


def _enter(op: Op, input: Labels, suffixes: list[str], dims: tuple[Dim, Dim], states: list[Labels]) -> None:
    """The input meets the weights of the first layer, and the given states those of the layer itself."""
    for suffix in suffixes:
        contract(op, input, -1, op.weight(f"weight_ih{suffix}"), 1)
    for dim in input.dims[:-1]:
        op.freeze(dim, "a step or a sample of a recurrence")
    for given, own in zip(states, dims, strict=False):
        for dim in given.dims[:-1]:
            op.freeze(dim, "a layer or a sample of a recurrence")
        _unite(op, own, given.dims[-1])
        if not given.zero[-1] and is_labelled(own):
            op.freeze(own, "the recurrence starts where it is not zero")


def _shaped(dim: Dim, shape: Sequence[int]) -> Labels:
    """A tensor with channels in its last dimension."""
    return Labels((*shape[:-1], dim), (*(False,) * (len(shape) - 1), True))


def _packed_data(op: Op) -> Labels:
    """The tensor of a packed sequence, which has the samples step after step."""
    packed = op.node.all_input_nodes[0]
    data = packed.args[0] if packed.args else None
    labels = op.labels_of.get(data.name) if isinstance(data, fx.Node) else None
    if not isinstance(data, fx.Node) or not isinstance(labels, Labels):
        raise UnsupportedCall("a packed sequence that was not made from a tensor in this model")
    op.sums_over_at(packed, data, 1)
    return labels


@rule("_pack_padded_sequence")
def pack(op: Op, input: Labels, lengths: Labels, batch_first: bool) -> LabelTree:
    """Steps and samples become one dimension, whose size depends on the lengths."""
    for dim in input.dims[:2]:
        op.freeze(dim, "a step or a sample of a recurrence")
    data, batch_sizes = op.value
    return Labels((len(data), *input.dims[2:]), (False, *input.zero[2:])), Labels.plain(batch_sizes.shape)


@rule("_pad_packed_sequence")
def pad(
    op: Op, data: Labels, batch_sizes: Labels, batch_first: bool, padding_value: float, total_length: int
) -> LabelTree:
    """Steps and samples become two dimensions again; short samples are padded."""
    padded, lengths = op.value
    zero = tuple(zero and padding_value == 0 for zero in data.zero[1:])
    return Labels((*padded.shape[:2], *data.dims[1:]), (False, False, *zero)), Labels.plain(lengths.shape)


@rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(op: Op, input: LabelTree, hx: LabelTree = None) -> LabelTree:
    module: Any = op.module
    data = input if isinstance(input, Labels) else _packed_data(op)
    is_packed = data is not input
    directions = 2 if module.bidirectional else 1
    suffixes = [f"_l{k}{end}" for k in range(module.num_layers) for end in ("", "_reverse")[:directions]]
    dims = _hidden(op, suffixes, directions)
    _enter(op, data, suffixes[:directions], dims, _starts(hx))
    output, last = op.value
    outer: LabelTree = _shaped(_times(dims[0], directions), (output.data if is_packed else output).shape)
    if is_packed:
        outer = (outer, *map(map_values, tuple(output)[1:]))
    if isinstance(last, tuple):
        return outer, tuple(_shaped(dim, state.shape) for dim, state in zip(dims, last, strict=True))
    return outer, _shaped(dims[0], last.shape)


@recurrent.flops
def _(op: Op, out: LabelTree, input: LabelTree, hx: LabelTree = None) -> list[Term]:
    module: Any = op.module
    data = next(labels_in(input))
    weights = [op.weight(name) for name, tensor in module.named_parameters(recurse=False) if tensor.ndim == 2]
    return [term(*factors) for factors in recurrent_factors(data.dims[:-1], [weight.dims for weight in weights])]


@rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(op: Op, input: Labels, hx: LabelTree = None) -> LabelTree:
    dims = _hidden(op, [""], 1)
    _enter(op, input, [""], dims, _starts(hx))
    if isinstance(op.value, tuple):
        return tuple(_shaped(dims[0], state.shape) for state in op.value)
    return _shaped(dims[0], op.shape)


@cell.flops
def _(op: Op, out: LabelTree, input: Labels, hx: LabelTree = None) -> list[Term]:
    weights = [op.weight(name).dims for name in ("weight_ih", "weight_hh")]
    return [term(*factors) for factors in recurrent_factors(input.dims[:-1], weights)]


@recurrent.rewrite
@cell.rewrite
def _(op: Rewrite, input: fx.Node, hx: Argument = None) -> Call | None:
    module: Any = op.module
    first = "weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight_ih"
    module.input_size = getattr(module, first).shape[1]
    projects = getattr(module, "proj_size", 0)
    setattr(module, "proj_size" if projects else "hidden_size", getattr(module, first.replace("ih", "hh")).shape[1])
    return None

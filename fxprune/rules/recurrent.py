"""Recurrent layers: the input's channels, and the hidden ones, in all gates, layers and directions at once.

A hidden channel whose weights are zero stays at zero from one step to the next, if it starts there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.polynomial import Term, term
from fxprune.rules.linear import contract
from fxprune.rules.registry import Call, Op, Rewrite, rule

__all__: list[str] = []


def _starts(state: Any) -> list[Labels]:
    return [] if state is None else [state] if isinstance(state, Labels) else list(state)


def _hidden(op: Op, suffixes: list[str], directions: int) -> Any:
    """The ids of the hidden channels: the same in every layer and direction, each with a number of gates."""
    first = op.weight(f"weight_hh{suffixes[0]}")
    assert first is not None
    hidden = first.dims[1]
    for k, suffix in enumerate(suffixes):
        recurrent, entering = op.weight(f"weight_hh{suffix}"), op.weight(f"weight_ih{suffix}")
        assert recurrent is not None
        assert entering is not None
        for weight in (recurrent, entering, op.weight(f"bias_ih{suffix}"), op.weight(f"bias_hh{suffix}")):
            rows = None if weight is None else weight.dims[0]
            if isinstance(rows, np.ndarray):
                _unite(op, hidden, op.unite_axis(rows.reshape(-1, size_of(hidden)), 1))
        _unite(op, hidden, recurrent.dims[1])
        if k >= directions:
            _unite(op, _times(hidden, directions), entering.dims[1])
    return hidden


def _unite(op: Op, hidden: Dim, other: Dim) -> None:
    if size_of(hidden) > 1:
        op.unite(hidden, other)


def _times(dim: Dim, n: int) -> Dim:
    return dim * n if isinstance(dim, int) else np.tile(dim, n)


def _enter(op: Op, input: Labels, suffixes: list[str], hidden: Dim, states: list[Labels]) -> None:
    for suffix in suffixes:
        weight = op.weight(f"weight_ih{suffix}")
        assert weight is not None
        contract(op, input, -1, weight, 1)
    for dim in input.dims[:-1]:
        op.freeze(dim, "a step or a sample of a recurrence")
    for state in states:
        for dim in state.dims[:-1]:
            op.freeze(dim, "a layer or a sample of a recurrence")
        _unite(op, hidden, state.dims[-1])
        if not state.zero[-1] and is_labelled(hidden):
            op.freeze(hidden, "the recurrence starts where it is not zero")


def _shaped(op: Op, dim: Dim, shape: Any) -> Labels:
    return Labels((*shape[:-1], dim), (*(False,) * (len(shape) - 1), True))


@rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(op: Op, input: Labels, hx: Any = None) -> Any:
    module: Any = op.module
    if module.proj_size:
        raise ValueError("proj_size is not supported")
    directions = 2 if module.bidirectional else 1
    suffixes = [f"_l{k}{end}" for k in range(module.num_layers) for end in ("", "_reverse")[:directions]]
    hidden = _hidden(op, suffixes, directions)
    _enter(op, input, suffixes[:directions], hidden, _starts(hx))
    output, last = op.value
    outer = _shaped(op, _times(hidden, directions), output.shape)
    if isinstance(last, tuple):
        return outer, tuple(_shaped(op, hidden, state.shape) for state in last)
    return outer, _shaped(op, hidden, last.shape)


@rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(op: Op, input: Labels, hx: Any = None) -> Any:
    hidden = _hidden(op, [""], 1)
    _enter(op, input, [""], hidden, _starts(hx))
    if isinstance(op.value, tuple):
        return tuple(_shaped(op, hidden, state.shape) for state in op.value)
    return _shaped(op, hidden, op.shape)


@cell.flops
def _(op: Op, out: Any, input: Labels, hx: Any = None) -> list[Term]:
    """Of the recurrent layers fvcore counts only these: they are linear layers to it."""
    entering, recurrent = op.weight("weight_ih"), op.weight("weight_hh")
    assert entering is not None
    assert recurrent is not None
    return [term(*input.dims, entering.dims[0]), term(*input.dims[:-1], recurrent.dims[1], recurrent.dims[0])]


@recurrent.rewrite
@cell.rewrite
def _(op: Rewrite, input: Any, hx: Any = None) -> Call | None:
    module: Any = op.module
    first = "weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight_ih"
    module.input_size = getattr(module, first).shape[1]
    module.hidden_size = getattr(module, first.replace("ih", "hh")).shape[1]
    return None

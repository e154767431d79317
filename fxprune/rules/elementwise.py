"""Element-wise ops: activations, arithmetic, comparisons, copies; operands are broadcast."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.ops import Trait, modules_with, names_with
from fxprune.rules.op import Op, UnsupportedCall
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite
from fxprune.running.one_node import run_node

__all__ = ["activation", "broadcast", "elementwise", "stays_zero", "take_from_tables", "unchanged"]


def broadcast(op: Op, operands: list[Labels]) -> tuple[Dim, ...]:
    """The dimensions of tensors that are broadcast against each other; dimensions that meet are united."""
    dims: list[Dim] = [1] * max(len(x.dims) for x in operands)
    for x in operands:
        for d in range(1, len(x.dims) + 1):
            dim = x.dims[-d]
            if size_of(dim) != 1:
                dims[-d] = dim if size_of(dims[-d]) == 1 else op.unite(dims[-d], dim)
    return tuple(dims)


def stays_zero(op: Op, arguments: tuple[Any, ...], options: dict[str, Any], zero: tuple[bool, ...]) -> bool:
    """Whether the op gives exactly zero where the marked operands are zero and the others are anything."""
    nodes = [x for x in (*op.node.args, *op.node.kwargs.values()) if isinstance(x, fx.Node)]
    masks = [x.meta["value"].dtype is torch.bool for x in nodes if isinstance(x.meta["value"], torch.Tensor)]
    # Masks are true where the number is positive: two masks take all four pairs of values.
    for trial in ((0.7, -1.3), (-0.4, 2.1), (1.6, 0.9), (-0.2, -1.1)):
        values = itertools.cycle(trial)
        kinds = iter(zip(zero, masks, strict=True))

        def stand_in(argument: Any) -> Any:
            if not isinstance(argument, Labels):
                return argument
            is_zero, is_mask = next(kinds)  # noqa: B023
            value = torch.tensor([0.0 if is_zero else next(values)], dtype=torch.float64)  # noqa: B023
            return value > 0 if is_mask else value

        args = tuple(stand_in(argument) for argument in arguments)
        kwargs = {name: stand_in(argument) for name, argument in options.items()}
        try:
            result = run_node(op.node, args, kwargs, op.module)
        except (RuntimeError, TypeError, IndexError):
            return False
        if not isinstance(result, torch.Tensor) or bool((result != 0).any()):
            return False
    return True


def _broadcast_to_tables(op: Op, operands: list[Labels]) -> tuple[Dim, ...]:
    """As `broadcast`, but a table without channels, as the angles of rotary embeddings, does not freeze what it meets.

    The rewrite takes from it the entries of the channels that stay.
    """
    carrying = [x for x in operands if x.labelled]
    activations = [op.labels_of[x.name] for x in op.node.all_input_nodes if x in op.state.input_dependent]
    # An op of parameters alone has no activations whose channels a table could follow.
    if "mutates" in op.node.meta or not any(isinstance(x, Labels) and x.labelled for x in activations):
        return broadcast(op, operands)
    dims = list(broadcast(op, carrying))
    for x in operands:
        dims = [*(1,) * (len(x.dims) - len(dims)), *dims]
        for d in range(1, len(x.dims) + 1):
            if size_of(dims[-d]) == 1:
                dims[-d] = x.dims[-d]
    return tuple(dims)


def _elementwise(op: Op, *arguments: Any, **options: Any) -> Labels:
    operands = [x for x in (*arguments, *options.values()) if isinstance(x, Labels)]
    if not operands:
        raise UnsupportedCall("no operand is a tensor")
    dims = _broadcast_to_tables(op, operands)
    zero: list[bool] = []
    known: dict[tuple[bool, ...], bool] = {}
    for d, dim in enumerate(dims):
        flags = tuple(_is_zero(x, d - len(dims)) for x in operands)
        if is_labelled(dim) and any(flags) and flags not in known:
            known[flags] = stays_zero(op, arguments, options, flags)
        zero.append(is_labelled(dim) and known.get(flags, False))
    return Labels(dims, tuple(zero))


def _is_zero(x: Labels, d: int) -> bool:
    return -d <= len(x.dims) and size_of(x.dims[d]) != 1 and x.zero[d]


@rule(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
def dropout_of_channels(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    return input


@rule(*modules_with(Trait.ELEMENTWISE))
def activation(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    """As `elementwise`, but a module, and its other arguments are no tables."""
    return _elementwise(op, input, *arguments, **options)


@rule(*names_with(Trait.ELEMENTWISE))
def elementwise(op: Op, *arguments: Any, **options: Any) -> Labels:
    """Each element of the output depends only on the elements of the operands at its place."""
    return _elementwise(op, *arguments, **options)


@elementwise.rewrite
def take_from_tables(op: Rewrite, *arguments: Argument, **options: Argument) -> Call | None:
    """Operands without channels, cut to the channels that stay."""
    cut = {node: _taken(op, node) for node in op.node.all_input_nodes}
    if all(node is taken for node, taken in cut.items()):
        return None
    args, kwargs = fx.node.map_arg((op.node.args, op.node.kwargs), cut.__getitem__)
    return Call(args, kwargs)


def _taken(op: Rewrite, node: fx.Node) -> fx.Node:
    x = op.labels_of.get(node.name)
    if not isinstance(x, Labels) or x.labelled:
        return node
    index: list[Argument] = [slice(None)] * len(x.dims)
    taken = node
    for d in range(-len(x.dims), 0):
        dim = op.out.dims[d]
        if x.dims[d] != 1 and not isinstance(dim, int) and op.changed(dim):
            index[d] = [int(k) for k in np.flatnonzero(op.kept(dim))]
            taken = op.insert(operator.getitem, (taken, tuple(index)))
            index[d] = slice(None)
    return taken


@rule(*names_with(Trait.COPY))
def unchanged(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    """The same values, in other memory or of another type."""
    return input


@rule("glu")
def glu(op: Op, input: Labels, dim: int = -1) -> Labels:
    """One half times the sigmoid of the other: channels go in pairs, one of each half."""
    ids = input.dims[dim]
    half = op.shape[dim] if isinstance(ids, int) else op.unite_axis(ids.reshape(2, -1), 1)
    return input.replace(dim, half)


@rule(nn.GLU)
def glu_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return glu.propagate(op, input, module.dim)


@rule("prelu")
def prelu(op: Op, input: Labels, weight: Labels) -> Labels:
    """One slope for all channels, or one for each channel of the second dimension."""
    if all(size_of(dim) == 1 for dim in weight.dims):
        return input
    if len(input.dims) < 2:
        raise UnsupportedCall("slopes for an input without a dimension of channels")
    return input.replace(1, op.unite(input.dims[1], weight.dims[0]))


@rule(nn.PReLU)
def prelu_module(op: Op, input: Labels) -> Labels:
    return prelu.propagate(op, input, op.weight("weight"))


@prelu_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
    module: Any = op.module
    module.num_parameters = module.weight.shape[0]
    return None


@rule("zeros_like")
def zeros_like(op: Op, input: Labels, **options: object) -> Labels:
    return Labels(input.dims, (True,) * len(input.dims))


@rule("ones_like", "full_like", "rand_like", "randn_like", "empty_like")
def like(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    return input.never_zero()

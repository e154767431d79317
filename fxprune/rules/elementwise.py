"""Ops that work on each element: activations, arithmetic, comparisons; operands broadcast."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.channels import Dim, Labels, is_labelled, size_of
from fxprune.rules.registry import Call, Op, Rewrite, rule

__all__ = ["activation", "broadcast", "elementwise", "take_from_tables", "unchanged"]

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Hardshrink, nn.Softshrink),
    *(nn.Tanhshrink, nn.LogSigmoid, nn.Threshold, nn.RReLU, nn.Identity, nn.Dropout, nn.AlphaDropout),
)

_UNARY = """
relu relu6 leaky_relu elu celu selu gelu silu mish hardswish sigmoid hardsigmoid tanh hardtanh softplus softsign
hardshrink softshrink tanhshrink logsigmoid threshold dropout alpha_dropout abs neg exp expm1 log log1p log2 log10 sqrt
rsqrt square sin cos tan atan asin acos sinh cosh erf erfc reciprocal sign floor ceil round trunc frac clamp clamp_min
clamp_max clip nan_to_num isnan isinf isfinite logical_not bitwise_not __neg__ __invert__ positive
""".split()  # noqa: SIM905

_NARY = """
add sub mul div truediv true_divide floordiv floor_divide remainder mod fmod rsub pow maximum minimum
where lerp addcmul addcdiv atan2 hypot eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or
masked_fill copysign xlogy iadd isub imul itruediv and_ or_ copy_ subtract multiply divide
__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__
""".split()  # noqa: SIM905


def broadcast(op: Op, operands: list[Labels]) -> tuple[Dim, ...]:
    """Unite the dimensions that meet when some tensors are broadcast against each other."""
    rank = max(len(x.dims) for x in operands)
    dims: list[Dim] = [1] * rank
    for x in operands:
        for d in range(1, len(x.dims) + 1):
            dim = x.dims[-d]
            if size_of(dim) != 1:
                dims[-d] = dim if size_of(dims[-d]) == 1 else op.unite(dims[-d], dim)
    return tuple(dims)


def _stays_zero(op: Op, arguments: tuple[Any, ...], options: dict[str, Any], zero: tuple[bool, ...]) -> bool:
    """Whether the op gives exactly zero where the marked operands are zero and the others are anything."""
    nodes = [x for x in (*op.node.args, *op.node.kwargs.values()) if isinstance(x, fx.Node)]
    masks = [x.meta["value"].dtype is torch.bool for x in nodes if isinstance(x.meta["value"], torch.Tensor)]
    # Masks are true where the number is positive: all four pairs occur.
    for trial in ((0.7, -1.3), (-0.4, 2.1), (1.6, 0.9), (-0.2, -1.1)):
        values = itertools.cycle(trial)
        kinds = iter(zip(zero, masks, strict=True))

        def stand_in(argument: Any) -> Any:
            if not isinstance(argument, Labels):
                return argument
            is_zero, is_mask = next(kinds)  # noqa: B023
            value = torch.tensor([0.0 if is_zero else next(values)], dtype=torch.float64)  # noqa: B023
            return value > 0 if is_mask else value

        args = [stand_in(argument) for argument in arguments]
        kwargs = {name: stand_in(argument) for name, argument in options.items()}
        try:
            if op.module is not None:
                result = op.module(*args, **kwargs)
            elif op.node.op == "call_method":
                result = getattr(args[0], str(op.node.target))(*args[1:], **kwargs)
            else:
                result = op.node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, IndexError):
            return False
        if not isinstance(result, torch.Tensor) or bool((result != 0).any()):
            return False
    return True


def _broadcast_to_tables(op: Op, operands: list[Labels]) -> tuple[Dim, ...]:
    """As `broadcast`; of what carries no channels, as angles of rotary embeddings, entries are taken for those left."""
    carrying = [x for x in operands if x.labelled]
    input_dependent = [op.labels_of[x.name] for x in op.node.all_input_nodes if x in op.input_dependent]
    # Of parameters alone there are no activations whose channels a table could follow.
    if "mutates" in op.node.meta or not any(isinstance(x, Labels) and x.labelled for x in input_dependent):
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
    dims = _broadcast_to_tables(op, operands)
    zero: list[bool] = []
    known: dict[tuple[bool, ...], bool] = {}
    for d, dim in enumerate(dims):
        flags = tuple(_is_zero(x, d - len(dims)) for x in operands)
        if is_labelled(dim) and any(flags) and flags not in known:
            known[flags] = _stays_zero(op, arguments, options, flags)
        zero.append(is_labelled(dim) and known.get(flags, False))
    return Labels(dims, tuple(zero))


def _is_zero(x: Labels, d: int) -> bool:
    return -d <= len(x.dims) and size_of(x.dims[d]) != 1 and x.zero[d]


@rule(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
def dropout_of_channels(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    return input


@rule(*_ACTIVATIONS)
def activation(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    """As `elementwise`, a module."""
    return _elementwise(op, input, *arguments, **options)


@rule(*_UNARY, *_NARY)
def elementwise(op: Op, *arguments: Any, **options: Any) -> Labels:
    """Each element of the output depends on the elements at its place alone."""
    return _elementwise(op, *arguments, **options)


@elementwise.rewrite
def take_from_tables(op: Rewrite, *arguments: Any, **options: Any) -> Call | None:
    """Entries of the channels that stay, of operands that carry none."""
    cut = {node: _taken(op, node) for node in op.node.all_input_nodes}
    if all(node is taken for node, taken in cut.items()):
        return None
    args, kwargs = fx.node.map_arg((op.node.args, op.node.kwargs), cut.__getitem__)
    return Call(args, kwargs)


def _taken(op: Rewrite, node: fx.Node) -> fx.Node:
    x = op.labels_of.get(node.name)
    if not isinstance(x, Labels) or x.labelled:
        return node
    index: list[Any] = [slice(None)] * len(x.dims)
    taken = node
    for d in range(-len(x.dims), 0):
        dim = op.out.dims[d]
        if x.dims[d] != 1 and not isinstance(dim, int) and op.changed(dim):
            index[d] = [int(k) for k in np.flatnonzero(op.kept(dim))]
            taken = op.insert(operator.getitem, (taken, tuple(index)))
            index[d] = slice(None)
    return taken


_UNCHANGED = """
clone contiguous detach to type type_as float half double bfloat16 int long bool cpu cuda requires_grad_
""".split()  # noqa: SIM905


@rule(*_UNCHANGED)
def unchanged(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    """The same values, elsewhere or of another type."""
    return input


@rule("glu")
def glu(op: Op, input: Labels, dim: int = -1) -> Labels:
    """One half times the sigmoid of the other: the halves stay equally long."""
    ids = input.dims[dim]
    half = op.shape[dim] if isinstance(ids, int) else op.unite_axis(ids.reshape(2, -1), 1)
    return input.replace(dim % len(input.dims), half)


@rule(nn.GLU)
def glu_module(op: Op, input: Labels) -> Labels:
    module: Any = op.module
    return glu.propagate(op, input, module.dim)


@rule(nn.PReLU)
def prelu_module(op: Op, input: Labels) -> Labels:
    weight = op.weight("weight")
    assert weight is not None
    return _prelu(op, input, weight)


def _prelu(op: Op, x: Labels, weight: Labels) -> Labels:
    if size_of(weight.dims[0]) == 1:
        return x
    return x.replace(1, op.unite(x.dims[1], weight.dims[0]))


@prelu_module.rewrite
def _(op: Rewrite, input: Any) -> Call | None:
    module: Any = op.module
    module.num_parameters = module.weight.shape[0]
    return None


@rule("prelu")
def prelu(op: Op, input: Labels, weight: Labels) -> Labels:
    return _prelu(op, input, weight)


@rule("zeros_like")
def zeros_like(op: Op, input: Labels, **options: Any) -> Labels:
    return Labels(input.dims, (True,) * len(input.dims))


@rule("ones_like", "full_like", "rand_like", "randn_like", "empty_like")
def like(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    return Labels(input.dims, (False,) * len(input.dims))

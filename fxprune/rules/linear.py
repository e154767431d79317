"""Linear layers, matrix products, einsum and embeddings."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.channels import Dim, Labels, size_of
from fxprune.channels.polynomial import Term, term
from fxprune.flops import (
    bilinear_factors,
    einsum_factors,
    einsum_letters,
    grouped_factors,
    matmul_factors,
    tensordot_factors,
)
from fxprune.rules.op import Op, UnsupportedCall
from fxprune.rules.registry import rule
from fxprune.rules.rewrite import Call, Rewrite

__all__ = ["contract"]


def contract(op: Op, left: Labels, d: int, right: Labels, e: int) -> None:
    """Dimension `d` of `left` is summed against dimension `e` of `right`.

    A removed channel must add nothing to the sum: either operand is zero there, or the channel stays.
    """
    dim = op.unite(left.dims[d], right.dims[e])
    op.sums_over(left, d)
    if not (left.zero[d] or right.zero[e]):
        op.freeze(dim, "contracted where it is not zero")


def _linear(op: Op, x: Labels, weight: Labels, bias: Labels | None) -> Labels:
    contract(op, x, -1, weight, -1)
    if len(weight.dims) == 1:
        return x.take(range(len(x.dims) - 1))
    out = weight.dims[0] if bias is None else op.unite(weight.dims[0], bias.dims[0])
    zero = weight.zero[0] and (bias is None or bias.zero[0])
    return Labels((*x.dims[:-1], out), (*(z and bias is None for z in x.zero[:-1]), zero))


@rule(nn.Linear)
def linear_module(op: Op, input: Labels) -> Labels:
    return _linear(op, input, op.weight("weight"), op.find_weight("bias"))


@linear_module.flops
def _(op: Op, out: Labels, input: Labels) -> list[Term]:
    return [term(*input.dims, op.weight("weight").dims[0])]


@linear_module.rewrite
def _(op: Rewrite, input: fx.Node) -> Call | None:
    module: Any = op.module
    module.out_features, module.in_features = module.weight.shape
    return None


@rule(F.linear)
def linear(op: Op, input: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    return _linear(op, input, weight, bias)


@linear.flops
def _(op: Op, out: Labels, input: Labels, weight: Labels, bias: Labels | None = None) -> list[Term]:
    return [term(*input.dims, weight.dims[0])]


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot")
def matmul(op: Op, input: Labels, other: Labels) -> Labels:
    return _product(op, input, other)


def _product(op: Op, input: Labels, other: Labels) -> Labels:
    contract(op, input, -1, other, -2 if len(other.dims) > 1 else -1)
    rows = 1 if len(input.dims) > 1 else 0
    columns = 1 if len(other.dims) > 1 else 0
    left, right = list(input.dims[: -1 - rows]), list(other.dims[: -1 - columns])
    left_zero, right_zero = list(input.zero[: -1 - rows]), list(other.zero[: -1 - columns])
    rank = max(len(left), len(right))
    left = [*(1,) * (rank - len(left)), *left]
    right = [*(1,) * (rank - len(right)), *right]
    left_zero = [False] * (rank - len(left_zero)) + left_zero
    right_zero = [False] * (rank - len(right_zero)) + right_zero
    dims: list[Dim] = []
    zero: list[bool] = []
    for a, b, a_zero, b_zero in zip(left, right, left_zero, right_zero, strict=True):
        both = size_of(a) != 1 and size_of(b) != 1
        dims.append(op.unite(a, b) if both else (b if size_of(a) == 1 else a))
        zero.append((a_zero and size_of(a) != 1) or (b_zero and size_of(b) != 1))
    if rows:
        dims.append(input.dims[-2])
        zero.append(input.zero[-2])
    if columns:
        dims.append(other.dims[-1])
        zero.append(other.zero[-1])
    return Labels(tuple(dims), tuple(zero))


@matmul.flops
def _(op: Op, out: Labels, input: Labels, other: Labels) -> list[Term]:
    return [term(*factors) for factors in matmul_factors(input.dims, other.dims)]


def _add(op: Op, input: Labels, product: Labels) -> Labels:
    """`input` plus a product, to which it is broadcast."""
    rank = len(product.dims)
    dims, zero = list(product.dims), list(product.zero)
    for d in range(1, len(input.dims) + 1):
        if size_of(input.dims[-d]) == 1:
            zero[rank - d] = False
        else:
            dims[rank - d] = op.unite(dims[rank - d], input.dims[-d])
            zero[rank - d] = zero[rank - d] and input.zero[-d]
    for d in range(rank - len(input.dims)):
        zero[d] = False
    return Labels(tuple(dims), tuple(zero))


@rule("addmm", "baddbmm", "addmv")
def addmm(op: Op, input: Labels, left: Labels, right: Labels, **scales: object) -> Labels:
    return _add(op, input, _product(op, left, right))


@rule("addbmm")
def addbmm(op: Op, input: Labels, left: Labels, right: Labels, **scales: object) -> Labels:
    """As `baddbmm`, summed over the batch."""
    for batch in (left, right):
        op.freeze(batch.dims[0], "summed over by addbmm")
    return _add(op, input, _product(op, left, right).take((1, 2)))


@addbmm.flops
@addmm.flops
def _(op: Op, out: Labels, input: Labels, left: Labels, right: Labels, **scales: object) -> list[Term]:
    return [term(*factors) for factors in matmul_factors(left.dims, right.dims)]


@rule("transformers.grouped_mm_fallback")
def grouped_product(op: Op, input: Labels, weight: Labels, offs: Labels) -> Labels:
    """Tokens, sorted by expert, times the matrix of their expert."""
    op.freeze((offs, weight.take([0])), "experts")
    contract(op, input, -1, weight, -2)
    return Labels((input.dims[0], weight.dims[-1]), (False, weight.zero[-1]))


@grouped_product.flops
def _(op: Op, out: Labels, input: Labels, weight: Labels, offs: Labels) -> list[Term]:
    return [term(*factors) for factors in grouped_factors(input.dims, weight.dims)]


@rule("grouped_mm", "_grouped_mm")
def fused_grouped_product(op: Op, mat_a: Labels, mat_b: Labels, **options: Any) -> Labels:
    """As `grouped_product`, but the kernel takes no widths that are not multiples of 16 bytes, so all channels stay."""
    op.freeze((mat_a, mat_b, options), "multiplied by grouped_mm, which needs widths in multiples of 16 bytes")
    return Labels.plain(op.shape)


@fused_grouped_product.flops
def _(op: Op, out: Labels, mat_a: Labels, mat_b: Labels, **options: Any) -> list[Term]:
    return [term(*factors) for factors in grouped_factors(mat_a.dims, mat_b.dims)]


def _operands(equation: object, operands: tuple[Any, ...]) -> tuple[str, tuple[Labels, ...]]:
    """The equation and the operands of an einsum, which come one by one or in one sequence."""
    if not isinstance(equation, str):
        raise UnsupportedCall("einsum with lists of numbers in place of an equation")
    return equation, tuple(operands[0]) if isinstance(operands[0], (tuple, list)) else operands


@rule("einsum")
def einsum(op: Op, equation: object, *operands: Any) -> Labels:
    equation, tensors = _operands(equation, operands)
    terms, result = einsum_letters(equation, [len(x.dims) for x in tensors])
    dims: dict[str, Dim] = {}
    zero: dict[str, bool] = {}
    for letters, x in zip(terms, tensors, strict=True):
        for letter, dim, is_zero in zip(letters, x.dims, x.zero, strict=True):
            if letter in dims and size_of(dims[letter]) == size_of(dim) != 1:
                dims[letter] = op.unite(dims[letter], dim)
            elif size_of(dims.get(letter, 1)) == 1:
                dims[letter] = dim
            zero[letter] = zero.get(letter, False) or (is_zero and size_of(dim) != 1)
    for letter, dim in dims.items():
        if letter not in result:
            letters, x = next((letters, x) for letters, x in zip(terms, tensors, strict=True) if letter in letters)
            op.sums_over(x, letters.index(letter))
            if not zero[letter]:
                op.freeze(dim, "contracted where it is not zero")
    return Labels(tuple(dims[letter] for letter in result), tuple(zero[letter] for letter in result))


@einsum.flops
def _(op: Op, out: Labels, equation: object, *operands: Any) -> list[Term]:
    equation, tensors = _operands(equation, operands)
    return [term(*factors) for factors in einsum_factors(equation, [x.dims for x in tensors])]


def _bilinear(op: Op, left: Labels, right: Labels, weight: Labels, bias: Labels | None) -> Labels:
    contract(op, left, -1, weight, 1)
    contract(op, right, -1, weight, 2)
    out = weight.dims[0] if bias is None else op.unite(weight.dims[0], bias.dims[0])
    lead = tuple(op.unite(a, b) for a, b in zip(left.dims[:-1], right.dims[:-1], strict=True))
    zero = weight.zero[0] and (bias is None or bias.zero[0])
    return Labels((*lead, out), (*(False,) * len(lead), zero))


@rule("bilinear")
def bilinear(op: Op, input1: Labels, input2: Labels, weight: Labels, bias: Labels | None = None) -> Labels:
    return _bilinear(op, input1, input2, weight, bias)


@bilinear.flops
def _(op: Op, out: Labels, input1: Labels, input2: Labels, weight: Labels, bias: Labels | None = None) -> list[Term]:
    return [term(*factors) for factors in bilinear_factors(input1.dims, weight.dims)]


@rule(nn.Bilinear)
def bilinear_module(op: Op, input1: Labels, input2: Labels) -> Labels:
    return _bilinear(op, input1, input2, op.weight("weight"), op.find_weight("bias"))


@bilinear_module.flops
def _(op: Op, out: Labels, input1: Labels, input2: Labels) -> list[Term]:
    return [term(*factors) for factors in bilinear_factors(input1.dims, op.weight("weight").dims)]


@bilinear_module.rewrite
def _(op: Rewrite, input1: fx.Node, input2: fx.Node) -> Call | None:
    module: Any = op.module
    module.out_features, module.in1_features, module.in2_features = module.weight.shape
    return None


def _summed(dims: Any, rank: int) -> Any:
    """The dimensions of both operands of a tensordot that are summed over."""
    return (range(rank - dims, rank), range(dims)) if isinstance(dims, int) else dims


@rule("tensordot")
def tensordot(op: Op, input: Labels, other: Labels, dims: Any = 2, **options: object) -> Labels:
    rank = len(input.dims)
    dims = _summed(dims, rank)
    left, right = ([d % len(x.dims) for d in given] for x, given in zip((input, other), dims, strict=True))
    for d, e in zip(left, right, strict=True):
        contract(op, input, d, other, e)
    rest = (
        input.take(d for d in range(rank) if d not in left),
        other.take(d for d in range(len(other.dims)) if d not in right),
    )
    return Labels((*rest[0].dims, *rest[1].dims), (*rest[0].zero, *rest[1].zero))


@tensordot.flops
def _(op: Op, out: Labels, input: Labels, other: Labels, dims: Any = 2, **options: object) -> list[Term]:
    factors = tensordot_factors(input.dims, other.dims, _summed(dims, len(input.dims))[1])
    return [term(*product) for product in factors]


@rule(nn.Embedding, nn.EmbeddingBag)
def embedding_module(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    weight = op.weight("weight", (1,))
    op.freeze((input, arguments, options), "used as an index")
    return Labels((*op.shape[:-1], weight.dims[1]), (*(False,) * (len(op.shape) - 1), True))


@embedding_module.rewrite
def _(op: Rewrite, input: fx.Node, *arguments: Argument, **options: Argument) -> Call | None:
    module: Any = op.module
    module.embedding_dim = module.weight.shape[1]
    return None


@rule(F.embedding)
def embedding(op: Op, input: Labels, weight: Labels, *args: object, **kwargs: object) -> Labels:
    op.freeze(input, "used as an index")
    op.freeze(weight.dims[0], "rows of an embedding table")
    return Labels((*input.shape, weight.dims[1]), (*(False,) * len(input.dims), weight.zero[1]))

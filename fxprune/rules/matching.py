"""Which dimensions of a tensor and of the same tensor in another shape hold the same elements."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from fxprune.rules.op import UnsupportedCall
from fxprune.rules.other_sizes import Sizes

__all__ = ["blocks", "match_is_fixed", "refine"]


def _times(left: Sizes, right: Sizes) -> Sizes:
    return tuple(map(operator.mul, left, right))


def _divides(divisor: Sizes, dividend: Sizes) -> bool:
    return not any(map(operator.mod, dividend, divisor))


def blocks(before: Sequence[Sizes], after: Sequence[Sizes]) -> Iterator[tuple[range, range]]:
    """The smallest runs of dimensions, in the old and in the new shape, that hold the same elements."""
    one = (1,) * len((*before, *after, ())[0])
    i = j = 0
    while i < len(before) or j < len(after):
        start, other = i, j
        left = right = one
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after) and (left != one or i == start or after[j] == one):
            right, j = after[j], j + 1
        # Products of more dimensions are never smaller, at any size, so that the order of tuples will do.
        while left != right:
            if (left < right and i == len(before)) or (left > right and j == len(after)):
                raise UnsupportedCall("a reshape of a tensor without elements")
            if left < right:
                left, i = _times(left, before[i]), i + 1
            else:
                right, j = _times(right, after[j]), j + 1
        yield range(start, i), range(other, j)


def refine(
    before: Sequence[Sizes], after: Sequence[Sizes]
) -> tuple[list[Sizes], list[list[int]], list[list[int]]] | None:
    """Factors such that every old and every new dimension is a product of consecutive factors.

    Returns:
        The factors, and for each old and each new dimension the positions of its factors; None if there are no such
        factors.
    """
    if any(0 in sizes for sizes in (*before, *after)):
        return None
    factors: list[Sizes] = []
    old: list[list[int]] = [[] for _ in before]
    new: list[list[int]] = [[] for _ in after]
    one = (1,) * len((*before, *after, ())[0])
    i = j = 0
    left = right = one
    while True:
        while left == one and i < len(before):
            left, i = before[i], i + 1
        while right == one and j < len(after):
            right, j = after[j], j + 1
        if left == right == one:
            return factors, old, new
        factor, other = sorted((left, right))
        if not _divides(factor, other):
            return None
        old[i - 1].append(len(factors))
        new[j - 1].append(len(factors))
        factors.append(factor)
        left, right = (tuple(map(operator.floordiv, sizes, factor)) for sizes in (left, right))


def match_is_fixed(node: fx.Node, source: fx.Node, labelled: Sequence[int], fixed: Mapping[fx.Node, Any]) -> bool:
    """Whether the match of channels follows from sizes that are fixed, or the same at any size.

    The sizes of channels have to be fixed, and so the sizes that they become. Before or after them may only be sizes
    that are fixed too, or read from the tensor that is reshaped.

    Args:
        node: of the reshape.
        source: of the tensor.
        labelled: its dimensions that carry channels.
        fixed: for each node which of its sizes are fixed.
    """
    shapes = [given.meta["value"].shape for given in (source, node)]
    before, after = ([n if known else None for n, known in zip(shape, fixed[given], strict=True)]
                     for shape, given in zip(shapes, (source, node), strict=True))  # fmt: skip
    reads = [_size_read(node, d, source) for d in range(len(after))]
    first = _matched(before, after, reads)
    last = _matched(before[::-1], after[::-1], [None if d is None else len(before) - 1 - d for d in reads[::-1]])
    return all(d < first or d >= len(before) - last for d in labelled)


def _size_read(node: fx.Node, d: int, source: fx.Node) -> int | None:
    """The dimension of a tensor whose size a reshape is given for dimension `d`, if it is given one."""
    sizes: Any = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    size = sizes[d] if d < len(sizes) else None
    if isinstance(size, fx.Node) and size.target == "size" and size.args[0] is source and len(size.args) == 2:
        dim: Any = size.args[1]
        return int(dim % len(source.meta["value"].shape))
    return None


def _matched(before: Sequence[int | None], after: Sequence[int | None], reads: Sequence[int | None]) -> int:
    """How many old dimensions match from the first one on."""
    i = j = 0
    while i < len(before) and j < len(after):
        if reads[j] == i:
            i, j = i + 1, j + 1
            continue
        ends = _same_product(before[i:], after[j:])
        if ends is None:
            break
        i, j = i + ends[0], j + ends[1]
    return i


def _same_product(before: Sequence[int | None], after: Sequence[int | None]) -> tuple[int, int] | None:
    """The smallest numbers of fixed sizes whose products are the same."""
    a = b = 1
    left, right = before[0], after[0]
    while left is not None and right is not None and left != right:
        if left < right:
            left, a = _product(left, before, a), a + 1
        else:
            right, b = _product(right, after, b), b + 1
    return None if left is None or right is None else (a, b)


def _product(so_far: int, sizes: Sequence[int | None], d: int) -> int | None:
    size = sizes[d] if d < len(sizes) else None
    return None if size is None else so_far * size

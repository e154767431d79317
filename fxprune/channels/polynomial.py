"""FLOPs as a polynomial in the numbers of kept channels.

Each op costs a coefficient times a product of dimension sizes. The size of a labelled dimension is the number of its
indices whose channel is kept. So the FLOPs of any plan are a sum of products of linear forms: exact integers that take
microseconds to compute, and the derivative takes no longer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.channels.ids import Dim, Ids

__all__ = ["Polynomial", "Term", "build_largest", "build_polynomial", "term", "with_blocks"]


@dataclass(frozen=True, eq=False)
class Term:
    """`coefficient` times the product of the sizes of the labelled dimensions `factors`."""

    coefficient: int
    factors: tuple[Ids, ...]

    def __call__(self, kept: npt.NDArray[np.bool_]) -> int:
        """FLOPs when these channels are kept: (number of channels,)."""
        return self.coefficient * math.prod(int(np.count_nonzero(kept[factor])) for factor in self.factors)


def term(*dims: Dim) -> Term:
    """The product of some dimensions' sizes."""
    coefficient = math.prod(dim for dim in dims if isinstance(dim, int))
    return Term(coefficient, tuple(dim for dim in dims if not isinstance(dim, int)))


def with_blocks(terms: Iterable[Term], sets: Sequence[tuple[int, ...]]) -> list[Term]:
    """The terms of a node that is needed if all blocks of one of these sets are there, by channel number.

    By inclusion and exclusion: what two sets need is there for either, and costs once.
    """
    made = []
    for count in range(1, len(sets) + 1):
        for some in itertools.combinations(sets, count):
            blocks = [np.array([block], dtype=np.int64) for block in sorted({k for each in some for k in each})]
            sign = 1 if count % 2 else -1
            made += [Term(sign * item.coefficient, (*item.factors, *blocks)) for item in terms]
    return made


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A sum of products of linear forms of the kept channels, or the largest of several such sums.

    Form `f` is the number of kept indices of one labelled dimension; form 0 is the constant one. Row `t` of `products`
    names the forms whose product, times `coefficients[t]`, is one term. Sum `s` starts at row `starts[s]`.
    """

    coefficients: npt.NDArray[np.int64]
    products: npt.NDArray[np.int64]
    form_of: npt.NDArray[np.int64]
    channel_of: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    num_forms: int
    num_channels: int

    @property
    def total(self) -> int:
        """FLOPs with every channel kept."""
        return self(np.ones(self.num_channels, dtype=bool))

    def sizes(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The value of every linear form."""
        values = np.bincount(self.form_of, weights=kept[self.channel_of], minlength=self.num_forms).astype(np.int64)
        values[0] = 1
        return values

    def sums(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sums from the values of the linear forms: (..., number of sums) from (..., number of forms)."""
        terms: npt.NDArray[np.int64] = self.coefficients * sizes[..., self.products].prod(axis=-1)
        if not len(self.starts):
            return np.zeros((*sizes.shape[:-1], 1), dtype=np.int64)
        return np.add.reduceat(terms, self.starts, axis=-1)

    def __call__(self, kept: npt.NDArray[np.bool_]) -> int:
        """FLOPs of the model that keeps these channels; `kept` has one boolean per channel."""
        return int(self.sums(self.sizes(kept)).max())

    def marginal(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """The derivative by each channel: about what its removal saves while all others stay as `kept` says.

        Of several sums it is that of the largest.
        """
        counts = self.sizes(kept)
        largest = int(self.sums(counts).argmax())
        rows = slice(*[*self.starts, len(self.products)][largest : largest + 2])
        products, coefficients, sizes = self.products[rows], self.coefficients[rows], counts.astype(np.float64)
        by_form = np.zeros(self.num_forms)
        for column in range(products.shape[1]):
            others = np.delete(products, column, axis=1)
            np.add.at(by_form, products[:, column], coefficients * sizes[others].prod(axis=1))
        of_channel = np.bincount(self.channel_of, weights=by_form[self.form_of], minlength=self.num_channels)
        return of_channel.astype(np.float64)


def build_polynomial(terms: Iterable[Term], num_channels: int) -> Polynomial:
    """Add up terms whose factors are in channel numbers; equal factors and equal terms are merged."""
    return build_largest([terms], num_channels)


def build_largest(sums: Iterable[Iterable[Term]], num_channels: int) -> Polynomial:
    """As `build_polynomial`, for the largest of several sums."""
    forms: dict[bytes, int] = {}
    arrays: list[Ids] = []
    products: list[tuple[int, ...]] = []
    coefficients: list[int] = []
    starts: list[int] = []
    for terms in sums:
        totals: dict[tuple[int, ...], int] = {}
        for item in terms:
            key: list[int] = []
            for factor in item.factors:
                content = factor.tobytes()
                if content not in forms:
                    forms[content] = len(forms) + 1
                    arrays.append(factor)
                key.append(forms[content])
            product = tuple(sorted(key))
            totals[product] = totals.get(product, 0) + item.coefficient
        if totals:
            starts.append(len(products))
        products += totals
        coefficients += totals.values()
    return Polynomial(
        coefficients=np.array(coefficients, dtype=np.int64),
        products=_rectangular(products, max(map(len, products), default=0) or 1),
        form_of=np.repeat(np.arange(1, len(arrays) + 1, dtype=np.int64), [len(array) for array in arrays]),
        channel_of=np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64),
        starts=np.array(starts, dtype=np.int64),
        num_forms=len(arrays) + 1,
        num_channels=num_channels,
    )


def _rectangular(products: Sequence[tuple[int, ...]], degree: int) -> npt.NDArray[np.int64]:
    padded = [product + (0,) * (degree - len(product)) for product in products]
    return np.array(padded, dtype=np.int64).reshape(len(padded), degree)

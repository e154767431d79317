"""The polynomial: exact counts, their derivative."""

from __future__ import annotations

import numpy as np

from fxprune.channels.polynomial import build_largest, build_polynomial, term

A, B = np.array([0, 1, 2]), np.array([3, 4, 4])


def test_a_term_is_the_product_of_sizes() -> None:
    polynomial = build_polynomial([term(10, A, B), term(7, A), term(5)], 5)
    assert polynomial.total == 10 * 3 * 3 + 7 * 3 + 5
    assert polynomial(np.array([True, False, True, False, True])) == 10 * 2 * 2 + 7 * 2 + 5


def test_equal_terms_are_merged_and_the_order_of_factors_is_none() -> None:
    polynomial = build_polynomial([term(A, B), term(B, A), term(2, A, B.copy())], 5)
    assert polynomial.coefficients.tolist() == [4]


def test_a_model_without_cost_has_a_polynomial_too() -> None:
    polynomial = build_polynomial([], 3)
    assert polynomial.total == 0
    assert polynomial.marginal(np.ones(3, dtype=bool)).tolist() == [0, 0, 0]


def test_counts_are_exact_beyond_float_precision() -> None:
    assert build_polynomial([term(10**17 + 1, A)], 3).total == 3 * (10**17 + 1)


def test_a_factor_twice_is_a_square() -> None:
    polynomial = build_polynomial([term(A, A)], 3)
    assert polynomial(np.array([True, True, False])) == 4
    assert polynomial.marginal(np.ones(3, dtype=bool)).tolist() == [6, 6, 6]


def test_the_derivative_is_what_each_channel_alone_costs() -> None:
    polynomial = build_polynomial([term(10, A, B), term(7, A), term(5)], 5)
    kept = np.array([True, False, True, True, True])
    alone = []
    for channel in range(5):
        there, gone = kept.copy(), kept.copy()
        there[channel], gone[channel] = True, False
        alone.append(polynomial(there) - polynomial(gone))
    assert polynomial.marginal(kept).tolist() == alone


def test_the_largest_of_several_sums_counts() -> None:
    polynomial = build_largest([[term(10, A)], [], [term(4, B), term(4, B), term(3)]], 5)
    assert polynomial.total == 30
    kept = np.array([True, False, True, True, True])
    assert polynomial.sums(polynomial.sizes(kept)).tolist() == [20, 27]
    assert polynomial(kept) == 27
    assert polynomial.marginal(kept).tolist() == [0, 0, 0, 8, 16]
    assert polynomial.marginal(np.ones(5, dtype=bool)).tolist() == [10, 10, 10, 0, 0]

"""Which dimensions of two shapes hold the same elements."""

from __future__ import annotations

import pytest

from fxprune.rules.matching import blocks, refine


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([(2,), (16,), (4,)], [(2,), (4,), (4,), (4,)], [((0, 1), (0, 1)), ((1, 2), (1, 3)), ((2, 3), (3, 4))]),
        ([(2,), (1,), (3,)], [(2,), (3,)], [((0, 1), (0, 1)), ((1, 2), (1, 1)), ((2, 3), (1, 2))]),
        # 16 positions are as many as the channels for this example only.
        ([(16, 36), (16, 16)], [(16, 16), (4, 6), (4, 6)], [((0, 2), (0, 3))]),
        ([(1, 2), (7, 7), (8, 8)], [(7, 14), (8, 8)], [((0, 2), (0, 1)), ((2, 3), (1, 2))]),
    ],
)
def test_blocks_are_the_smallest_runs_of_dimensions_that_match_at_all_sizes(
    before: list[tuple[int, ...]], after: list[tuple[int, ...]], expected: list[tuple[tuple[int, int], ...]]
) -> None:
    assert list(blocks(before, after)) == [(range(*old), range(*new)) for old, new in expected]


def test_factors_divide_at_all_sizes_or_there_are_none() -> None:
    assert refine([(6, 6), (4, 9)], [(2, 2), (12, 27)]) == ([(2, 2), (3, 3), (4, 9)], [[0, 1], [2]], [[0], [1, 2]])
    assert refine([(4,), (16,)], [(16,), (4,)]) == ([(4,), (4,), (4,)], [[0], [1, 2]], [[0, 1], [2]])
    assert refine([(4, 9), (16, 16)], [(16, 16), (4, 9)]) is None

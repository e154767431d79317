"""The lanes of the graph."""

from __future__ import annotations

from fxprune.reporting.charts import _lanes
from fxprune.reporting.facts import Change, Row


def test_a_lane_runs_until_it_is_read_for_the_last_time() -> None:
    rows = [
        Row("x", "input", (), None),
        Row("a", "Conv2d", (0,), 0, Change(4, 2)),
        Row("b", "Conv2d", (1,), 1, Change(4, 2)),
        Row("", "add", (2, 1), 0),
        Row("output", "output", (3,), None),
    ]
    assert _lanes(rows) == [0, 0, 1, 0, 0]

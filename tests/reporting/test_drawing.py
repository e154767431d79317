"""The rows of the graph: layers and the places where branches meet."""

from __future__ import annotations

import fxprune


def test_rows_read_from_layers_past_what_keeps_channels_apart(made: fxprune.Report) -> None:
    rows = made.rows
    names = [row.name for row in rows]
    assert names[0] == "x"
    assert rows[names.index("stem")].inputs == (0,)
    # The norm and the activation between them are no rows.
    assert rows[names.index("one")].inputs == (names.index("stem"),)
    add = next(row for row in rows if row.kind == "add")
    assert {rows[k].name for k in add.inputs} == {"stem", "two"}
    assert rows[-1].kind == "output"


def test_layers_have_the_number_of_their_group(made: fxprune.Report) -> None:
    row = next(row for row in made.rows if row.name == "one")
    assert row.group is not None
    assert made.groups[row.group].layers == ("one",)
    assert next(row for row in made.rows if row.name == "head").group is None

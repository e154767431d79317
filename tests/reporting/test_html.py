"""Pieces of HTML: what they are given as text is escaped, and bars stay in their boxes."""

from __future__ import annotations

from fxprune.reporting.html import cell, code, legend, names_cell, number_cell, section, table, tile


def test_text_is_escaped() -> None:
    for made in (cell("<b>", "<b>"), names_cell(["<b>"]), names_cell(["<b>"] * 9), code("<b>")):
        assert "<b>" not in made
        assert "&lt;b&gt;" in made


def test_long_lists_of_names_are_cut_with_all_of_them_in_the_tooltip() -> None:
    assert names_cell(list("abcd")).endswith(">a, b, c, d</td>")
    assert names_cell([]).endswith(">-</td>")
    assert '<span title="a, b, c, d, e">a, b, c and 2 more</span>' in names_cell(list("abcde"))


def test_cells_of_numbers_name_their_column() -> None:
    made = table(("layer", "n:FLOPs"), [(cell("a"), number_cell("12"))])
    assert '<th>layer</th><th class="n">FLOPs</th>' in made
    assert '<td class="n" data-name="FLOPs">12</td>' in made


def test_a_tile_shows_a_bar_and_the_mark_of_a_budget() -> None:
    assert "meter" not in tile("Weights", "1", "")
    made = tile("FLOPs", "1", "of 2", 1.5, 0.5, "budget")
    assert "width:100.00%" in made
    assert "left:50.00%" in made
    assert "of 2; budget" in made


def test_a_section_has_a_heading_and_a_legend_two_colours() -> None:
    assert section("Groups", "<p>x</p>") == "<section><h2>Groups</h2><p>x</p></section>"
    assert legend("before", "after").count("<i ") == 2

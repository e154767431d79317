"""Pieces of the page: sections, tiles, tables, keys of charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["cell", "code", "legend", "names_cell", "number_cell", "section", "table", "tile"]

# More layers than this are named in the tooltip alone.
_MOST_NAMES = 4


def section(name: str, content: str) -> str:
    """A part of the page under a heading; `content` is HTML."""
    return f"<section><h2>{name}</h2>{content}</section>"


def tile(
    name: str, big: str, more: str, share: float | None = None, mark: float | None = None, extra: str = ""
) -> str:  # fmt: skip
    """A number in large type.

    Args:
        name: what it is.
        big: the number, as HTML.
        more: what is written below.
        share: the fraction that a bar shows; None for no bar.
        mark: the fraction that a tick on the bar shows.
        extra: what follows `more`.
    """
    meter = ""
    if share is not None:
        tick = "" if mark is None else f'<b style="left:{min(mark, 1) * 100:.2f}%"></b>'
        meter = f'<div class="meter"><i style="width:{min(share, 1) * 100:.2f}%"></i>{tick}</div>'
    more = f"{more}; {extra}" if extra else more
    shown = f'<div class="name">{name}</div><div class="big">{big}</div>{meter}<div class="more">{more}</div>'
    return f'<div class="tile">{shown}</div>'


def legend(before: str, after: str) -> str:
    """What the two colours of a chart mean."""
    return (
        f'<div class="key"><span><i style="background:var(--before)"></i>{before}</span>'
        f'<span><i style="background:var(--after)"></i>{after}</span></div>'
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells; the heads of columns of numbers start with "n:"."""
    names = [name.removeprefix("n:") for name in heads]
    head = "".join(
        f'<th class="n">{name}</th>' if marked.startswith("n:") else f"<th>{name}</th>"
        for marked, name in zip(heads, names, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_named, row, names))}</tr>" for row in rows)
    return f'<table class="stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _named(shown: str, name: str) -> str:
    """A cell that says which column it is of: on narrow screens a row is a block."""
    return shown.replace('<td class="n">', f'<td class="n" data-name="{name}">')


def cell(text: str, note: str = "", before: str = "") -> str:
    """A cell of text, with a note below it; `before` is HTML that goes in front."""
    below = f'<br><span class="soft">{escape(note)}</span>' if note else ""
    return f'<td class="wrap">{before}{escape(text)}{below}</td>'


def names_cell(names: Sequence[str]) -> str:
    """A cell of names; the tooltip has all of them."""
    shown = escape(", ".join(names)) or "-"
    if len(names) > _MOST_NAMES:
        first = escape(", ".join(names[: _MOST_NAMES - 1]))
        shown = f'<span title="{shown}">{first} and {len(names) - _MOST_NAMES + 1} more</span>'
    return f'<td class="wrap soft">{shown}</td>'


def number_cell(number: str) -> str:
    """A cell of a number; `number` is HTML."""
    return f'<td class="n">{number}</td>'


def code(text: str) -> str:
    """A block of code."""
    return f"<pre><code>{escape(text)}</code></pre>"

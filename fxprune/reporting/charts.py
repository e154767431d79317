"""Charts of the page as inline SVG: columns by layer, and the graph of the model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from fxprune.reporting.facts import Row
from fxprune.reporting.numbers import arrow

__all__ = ["Column", "columns", "graph", "hue"]

# (before, after, tooltip); before and after are fractions of the height.
Column = tuple[float, float, str]

_HEIGHT = 100
# In CSS pixels; `page.css` has the same numbers. Not tuned.
_ROW = 24
_GUTTER = 240
_NARROWEST = 5.0


def hue(group: int | None) -> str:
    """The colour of a group as a CSS variable; neighbouring numbers get distant colours (the golden angle)."""
    return "" if group is None else f"--hue:{(210 + group * 137.508) % 360:.0f}"


def columns(bars: Sequence[Column], label: str) -> str:
    """One column for each bar: before, and in front of it after. The chart stretches to any width."""
    # A fifth of each step is a gap. With hundreds of layers each keeps three pixels, and the chart scrolls.
    parts = []
    for k, (before, after, title) in enumerate(bars):
        x = k * 10 + 1
        parts.append(
            f'<g class="column"><title>{escape(title)}</title><rect class="hit" x="{k * 10}" width="10" '
            f'height="{_HEIGHT}"/>{_bar("was", x, before)}{_bar("is", x, after)}</g>'
        )
    return (
        f'<div class="scroll"><svg class="chart" role="img" aria-label="{escape(label)}" preserveAspectRatio="none" '
        f'style="min-width:{3 * len(bars)}px" viewBox="0 0 {10 * max(len(bars), 1)} {_HEIGHT}">'
        f"{''.join(parts)}</svg></div>"
    )


def _bar(kind: str, x: int, height: float) -> str:
    tall = height * _HEIGHT
    return f'<rect class="{kind}" x="{x}" width="8" y="{_HEIGHT - tall:.2f}" height="{tall:.2f}"/>' if tall else ""


def graph(rows: Sequence[Row]) -> str:
    """The graph from top to bottom: a line for each row, and at its left the rows that it reads from."""
    lanes = _lanes(rows)
    step = max(_NARROWEST, min(16.0, _GUTTER / (max(lanes, default=0) + 1)))
    width = step * (max(lanes, default=0) + 1) + 12
    edges = [_edge(rows[given], given, k, lanes, step) for k, row in enumerate(rows) for given in row.inputs]
    marks = [_mark(row, k, lanes[k], step) for k, row in enumerate(rows)]
    lines = "".join(_line(row) for row in rows)
    return (
        f'<div class="graph"><svg width="{width:.0f}" height="{_ROW * len(rows)}" aria-hidden="true">'
        f"{''.join(edges)}{''.join(marks)}</svg><ol>{lines}</ol></div>"
    )


def _lanes(rows: Sequence[Row]) -> list[int]:
    """The lane of each row: its value runs down this lane until its last reader."""
    last = list(range(len(rows)))
    for k, row in enumerate(rows):
        for given in row.inputs:
            last[given] = k
    busy: list[int | None] = []
    lanes: list[int] = []
    for k, row in enumerate(rows):
        for given in row.inputs:
            if last[given] == k:
                busy[lanes[given]] = None
        mine = min((lanes[given] for given in row.inputs if last[given] == k), default=None)
        if mine is None:
            mine = busy.index(None) if None in busy else len(busy)
        if mine == len(busy):
            busy.append(None)
        lanes.append(mine)
        if last[k] > k:
            busy[mine] = k
    return lanes


def _edge(source: Row, start: int, end: int, lanes: Sequence[int], step: float) -> str:
    """A line down the lane of the source, which crosses to the reader in the last row."""
    x, y = _at(lanes[start], step), _middle(start)
    to_x, to_y = _at(lanes[end], step), _middle(end)
    if x == to_x:
        path = f"M{x:.1f} {y}V{to_y}"
    else:
        path = f"M{x:.1f} {y}V{to_y - _ROW}C{x:.1f} {to_y - 6} {to_x:.1f} {to_y - 18} {to_x:.1f} {to_y}"
    colour = f' class="c" style="{hue(source.group)}"' if source.group is not None else ""
    return f'<path{colour} d="{path}"/>'


def _mark(row: Row, k: int, lane: int, step: float) -> str:
    x, y = _at(lane, step), _middle(k)
    colour = f' class="c" style="{hue(row.group)}"' if row.group is not None else ""
    if row.channels is None and row.kind not in ("input", "output"):
        return f'<circle{colour} cx="{x:.1f}" cy="{y}" r="{min(4.0, step / 2):.1f}"/>'
    half = min(6.0, step)
    if row.channels is not None and row.channels.after == 0:
        colour = ' class="gone"'
    return f'<rect{colour} x="{x - half:.1f}" y="{y - half}" width="{2 * half}" height="{2 * half}" rx="3"/>'


def _line(row: Row) -> str:
    channels = "" if row.channels is None else f'<span class="n">{escape(arrow(row.channels, "all"))}</span>'
    name = row.kind if row.channels is None else row.name
    kind = row.name if row.channels is None else row.kind
    title = escape(f"{row.name}: {row.kind}")
    shown = "" if kind == name else f'<span class="kind">{escape(kind)}</span>'
    gone = ' class="gone"' if row.channels is not None and row.channels.after == 0 else ""
    return f'<li{gone} title="{title}"><span class="what">{escape(name)}</span>{shown}{channels}</li>'


def _at(lane: int, step: float) -> float:
    return 12 + lane * step


def _middle(row: int) -> int:
    return row * _ROW + _ROW // 2

"""The pictures of docs/how-it-works.md, drawn from the analysis of a real net.

    python docs/images/draw.py

They take the text colour of the page, so they are readable on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels import Labels

HERE = Path(__file__).resolve().parent
COLOURS = ("#2f7fc1", "#d9772b", "#2f9e62", "#9a5fc4")
GREY = "#8a8f98"
FONT = 'font-family="inherit, sans-serif"'


class Net(nn.Module):
    """A residual addition, a concatenation and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images to five scores."""
        x = self.stem(x).relu()
        x = x + self.conv2(self.conv1(x).relu())
        x = torch.cat([x, self.branch(x)], dim=1)
        return self.head(x.mean((2, 3)))


# The column and row of each node of the traced net: one node a row, side branches in the second column.
ROWS = ["x", "stem", "relu", "conv1", "relu_1", "conv2", "add", "branch", "cat", "mean", "head", "output"]
PLACES = {name: (2 if name in ("conv1", "relu_1", "conv2", "branch") else 1, row) for row, name in enumerate(ROWS)}
SHOWN = {"x": "images", "relu": "relu", "relu_1": "relu", "add": "+", "cat": "cat", "mean": "mean", "output": "scores"}


def colour_of_channels(graph: fxprune.ChannelGraph) -> dict[int, str]:
    """Channel number -> the colour of its group; grey is frozen."""
    return {int(c): colour for group, colour in zip(graph.groups, COLOURS, strict=False) for c in group.channels}


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A picture that shrinks if the page is narrower than it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" fill="currentColor" {FONT} font-size="13">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>", ""])


def text(x: float, y: float, words: str, anchor: str = "start", **style: str) -> str:
    """A line of text."""
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def channel_graph(graph: fxprune.ChannelGraph) -> str:
    """Nodes and tensors; each tensor has the colours of its channels' groups."""
    colours = colour_of_channels(graph)
    nodes = {node.name: node for node in graph.module.graph.nodes}
    assert nodes.keys() == PLACES.keys(), f"the traced net has other nodes: {list(nodes)}"
    row, wide, high = 46, 108, 26
    centre = {name: (70 + 130 * (column - 1), 20 + row * r) for name, (column, r) in PLACES.items()}
    parts = []
    for name, node in nodes.items():
        for source in node.all_input_nodes:
            (x1, y1), (x2, y2) = centre[source.name], centre[name]
            labels = graph.labels[source.name]
            assert isinstance(labels, Labels)
            carried = [dim for dim in labels.dims if not isinstance(dim, int)]
            channels = [int(c) for dim in carried for c in dim]
            inside = list(dict.fromkeys(colours.get(c, GREY) for c in channels)) or [GREY]
            for k, colour in enumerate(inside):
                count = sum(colours.get(c, GREY) == colour for c in channels)
                shift = 7 * (k - (len(inside) - 1) / 2)
                dash = ' stroke-dasharray="3 4"' if not channels or colour == GREY else ""
                bend = f"C {x1 + shift} {y1 + 34}, {x2 + shift} {y2 - 34}, {x2 + shift} {y2 - high / 2}"
                parts.append(
                    f'<path d="M {x1 + shift} {y1 + high / 2} {bend}" fill="none" stroke="{colour}" '
                    f'stroke-width="{max(2.0, 0.75 * count):.1f}"{dash}/>'
                )
    for name, (x, y) in centre.items():
        layer = nodes[name].op == "call_module"
        filled = 'fill="currentColor" fill-opacity="0.1"' if layer else 'fill="none"'
        parts.append(
            f'<rect x="{x - wide / 2}" y="{y - high / 2}" width="{wide}" height="{high}" rx="4" {filled} '
            f'stroke="currentColor" stroke-opacity="{0.7 if layer else 0.25}"/>'
        )
        parts.append(text(x, y + 4.5, SHOWN.get(name, name), "middle", font_weight="600" if layer else "400"))
    y = 30
    for group, colour in zip(graph.groups, COLOURS, strict=False):
        parts.append(f'<rect x="300" y="{y - 10}" width="14" height="14" rx="3" fill="{colour}"/>')
        parts.append(text(322, y + 2, f"group {group.name}: {len(group)} channels", font_weight="600"))
        for dimension in group.dimensions:
            y += 18
            parts.append(text(322, y + 2, str(dimension), font_size="12", fill_opacity="0.8"))
        y += 32
    parts.append(f'<path d="M 300 {y - 3} h 14" stroke="{GREY}" stroke-width="2.5" stroke-dasharray="3 4"/>')
    parts.append(text(322, y + 2, "frozen, or no channels", font_weight="600"))
    for frozen in graph.frozen:
        y += 18
        parts.append(text(322, y + 2, f"{len(frozen)}: {frozen.reason}", font_size="12", fill_opacity="0.8"))
    title = "The channel graph of a small net: each tensor in the colours of the groups of its channels"
    return svg(640, max(y + 24, 20 + row * 11 + 24), title, parts)


def weights(graph: fxprune.ChannelGraph, plan: fxprune.Plan) -> str:
    """The weights as matrices of outputs by inputs: kept entries in colour, removed ones empty."""
    colours = colour_of_channels(graph)
    cell, parts, x, deepest = 12, [], 10, 0
    for name in ("stem", "conv1", "conv2", "branch", "head"):
        rows, columns = graph.parameters[f"{name}.weight"][:2]
        kept = plan.kept.get(f"{name}.weight", {})
        kept_rows, kept_columns = kept.get(0, range(len(rows))), kept.get(1, range(len(columns)))
        parts.append(text(x, 16, name, font_weight="600"))
        for r, out in enumerate(rows):
            # The rows are outputs; the mark on the left has the colour of the group.
            y = 42 + cell * r
            parts.append(_mark(x, y, colours.get(int(out), GREY), r in kept_rows, 4, cell - 2))
            for c in range(len(columns)):
                stays = r in kept_rows and c in kept_columns
                look = 'fill="currentColor" fill-opacity="0.55"' if stays else 'fill="currentColor" fill-opacity="0.08"'
                parts.append(f'<rect x="{x + 8 + cell * c}" y="{y}" width="{cell - 2}" height="{cell - 2}" {look}/>')
        for c, into in enumerate(columns):
            parts.append(_mark(x + 8 + cell * c, 34, colours.get(int(into), GREY), c in kept_columns, cell - 2, 4))
        size = f"{len(rows)} x {len(columns)}"
        after = f"{len(kept_rows)} x {len(kept_columns)}"
        bottom = 42 + cell * len(rows) + 14
        parts.append(text(x, bottom, size, font_size="11", fill_opacity="0.7"))
        parts.append(text(x, bottom + 15, f"becomes {after}", font_size="11", fill_opacity="0.7"))
        deepest = max(deepest, bottom + 15)
        x += max(8 + cell * len(columns), 76) + 18
    title = "The weights of the small net before and after a plan: rows and columns of a group go together"
    return svg(x, deepest + 10, title, parts)


def _mark(x: int, y: int, colour: str, stays: bool, wide: int, high: int) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" fill="{colour}" fill-opacity="{1 if stays else 0.2}"/>'
    )


def pipeline() -> str:
    """The values and the functions between them."""
    values = ("model", "traced", "graph", "scores", "plan", "small")
    calls = ("trace", "analyze", "scores", "make_plan", "rewrite")
    below = (
        "any nn.Module", "a GraphModule,\nthe same model", "channels, groups,\nfrozen and why",
        "one number\na channel", "what stays,\nand its FLOPs", "a smaller\nGraphModule",
    )  # fmt: skip
    parts, wide, step = [], 84, 140
    for k, (value, words) in enumerate(zip(values, below, strict=True)):
        x = 10 + step * k
        parts.append(
            f'<rect x="{x}" y="20" width="{wide}" height="30" rx="5" fill="{COLOURS[0]}" fill-opacity="0.15" '
            f'stroke="{COLOURS[0]}"/>'
        )
        parts.append(text(x + wide / 2, 39.5, value, "middle", font_weight="600"))
        for n, line in enumerate(words.split("\n")):
            parts.append(text(x + wide / 2, 70 + 15 * n, line, "middle", font_size="11", fill_opacity="0.75"))
    for k, call in enumerate(calls):
        x = 10 + step * k + wide
        parts.append(f'<path d="M {x + 4} 35 h {step - wide - 12}" stroke="currentColor" stroke-width="1.5"/>')
        parts.append(f'<path d="M {x + step - wide - 3} 35 l -7 -4 v 8 z"/>')
        parts.append(text(x + (step - wide) / 2, 15, call, "middle", font_size="11"))
    return svg(10 + step * 5 + wide + 10, 96, "From a model to a smaller one in five steps", parts)


def main() -> None:
    """Write all pictures."""
    torch.manual_seed(0)
    graph = fxprune.analyze(fxprune.trace(Net(), torch.randn(1, 3, 8, 8)))
    plan = fxprune.make_plan(graph, fxprune.scores(graph, "l2"), flops=0.5)
    for name, picture in (
        ("pipeline", pipeline()),
        ("channel-graph", channel_graph(graph)),
        ("weights", weights(graph, plan)),
    ):
        (HERE / f"{name}.svg").write_text(picture)
    print(graph)


if __name__ == "__main__":
    main()

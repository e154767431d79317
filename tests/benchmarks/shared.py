"""What the benchmarks share: their command line, rows in files, tables and figures."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

__all__ = ["DOCS", "append_row", "figure", "markdown_table", "palette", "parser_of", "read_rows", "settle"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
Row = dict[str, Any]


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the script."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def settle(threads: int = 1) -> None:
    """What comparable measurements need: a fixed number of threads, and no warnings between the rows."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")


def append_row(path: Path, row: Row) -> None:
    """Add a line to a file of JSON lines; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, if it exists; a run that was killed while it wrote leaves half a line, which is skipped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; ends with a newline."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]]) + "\n"


def palette(name: str) -> Sequence[tuple[float, float, float]]:
    """The colours of one of matplotlib's qualitative colour maps."""
    import matplotlib as mpl

    return mpl.colormaps[name].colors


@contextmanager
def figure(path: Path, panels: int, size: tuple[float, float], **options: Any) -> Iterator[Any]:
    """The panels of a figure, side by side; it is written as SVG at the end, the same file for the same numbers."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "fxprune"
    mpl.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(1, panels, figsize=size, squeeze=False, **options)
    yield axes[0]
    made.tight_layout()
    made.savefig(path, metadata={"Date": None})
    plt.close(made)

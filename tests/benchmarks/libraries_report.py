"""The page of what `libraries.py` has measured."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import markdown_table

__all__ = ["write_report"]

Row = dict[str, Any]
PASSED, REFUSED, FAILED = "passed", "refused", "failed"
LESS, NOT_RUN = "reached 60 to 90 %", "does not run itself"
KINDS = (PASSED, LESS, REFUSED, FAILED)
HEAD = """# Other libraries

Models of libraries that fxprune does not know by name, pruned to half of their FLOPs with
`fxprune.prune(model, 0.5, example_inputs=..., compensate=False)`. fxprune got no other settings, and the models were
not changed. **The weights are random and most configurations are small** (two layers, 32 channels, 64 pixels). The
table shows which libraries' code fxprune understands, not how accurate a pruned model is. [Models](models.md) covers
timm and torchvision.
"""
MEANING = """\
- *passed*: the model was traced; the result has 0.4975 to 0.5 of the FLOPs as fvcore counts them, and the plan
  predicts the same counts; the outputs have the same shapes and equal the zero-masked original's within 1e-9 in
  float64; the backward pass gives gradients if the original's does.
- *reached 60 to 90 %*: the same, but too many channels are frozen, so the model was pruned to 0.6, 0.7, 0.8 or 0.9 of
  the FLOPs instead.
- *refused*: `fxprune.prune` raised an `FxpruneError`.
- *failed*: anything else, with the reason below. A ratio slightly below 0.4975 meets the budget, but not as closely as
  this check requires: in a small model one channel is a large step.
- *own class*: how many of those that passed [`fxprune.restore_class`](elsewhere.md#keep-your-class) returns as an
  object of the model's own class, without any settings.
"""


def write_report(rows: Sequence[Row], listed: int, page: Path) -> None:
    """Write the page: a table of the libraries, then what did not pass and why. `listed` models are to be tried."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["model"].partition(":")[0], []).append(row)
    of = dict(sorted(of.items(), key=lambda item: -len(item[1])))
    page.write_text(f"{HEAD}\n{_table(of)}\n{MEANING}\n{_remarks(rows, listed)}\n{_reasons(rows)}")
    print(f"{page}: {len(rows)} models")


def _table(of: dict[str, list[Row]]) -> str:
    versions = {library: max(row.get("version", "") for row in rows) for library, rows in of.items()}
    lines = [[library, versions[library], *_counts(rows)] for library, rows in of.items()]
    lines.append(["all", "", *_counts([row for rows in of.values() for row in rows])])
    return markdown_table(["library", "version", "tried", *KINDS, "own class"], lines)


def _counts(rows: Sequence[Row]) -> list[str]:
    kinds = [_kind(row) for row in rows]
    tried = len(kinds) - kinds.count(NOT_RUN)
    own = sum(row.get("own_class", False) for row in rows if _kind(row) == PASSED)
    return [str(count) for count in (tried, *(kinds.count(kind) or "" for kind in KINDS), own)]


def _remarks(rows: Sequence[Row], listed: int) -> str:
    errors = [row["error"] for row in rows if "error" in row]
    without = sum("no_backward" in row for row in rows)
    not_run = sum(_kind(row) == NOT_RUN for row in rows)
    today = dt.date.today().isoformat()
    return (
        f"Made on {today} by `python tests/benchmarks/libraries.py`, which lists the models. {len(errors)} models were "
        f"compared with their\nzero-masked originals; the largest error is {max(errors):.1e}. Models without finite "
        f"gradients in eval mode, like their originals: {without}.\nModels that do not run themselves with these "
        f"versions, or need the network (not counted): {not_run}. Models not tried yet: {listed - len(rows)}. The\n"
        f"rows come from {len({row['source'] for row in rows})} versions of fxprune's source.\n"
    )


def _reasons(rows: Sequence[Row]) -> str:
    parts = ["## What did not pass\n"]
    for kind in (FAILED, REFUSED, LESS):
        mine = sorted((row for row in rows if _kind(row) == kind), key=lambda row: str(row["model"]))
        if mine:
            lines = "\n".join(f"- `{row['model']}`: {_why(row)}" for row in mine)
            parts.append(f"{kind.capitalize()}:\n\n{lines}\n")
    return "\n".join(parts)


def _kind(row: Row) -> str:
    if row["ok"]:
        return PASSED if row["budget"] == 0.5 else LESS
    check, reason = next(iter(row["failed"].items()))
    if check == "build":
        return NOT_RUN
    return REFUSED if check in ("analyze", "prune") and reason.startswith("FxpruneError") else FAILED


def _why(row: Row) -> str:
    kind = _kind(row)
    if kind == LESS:
        return f"{row['ratio']:.2f} of the FLOPs; {_short(row['limit'])}"
    if kind == REFUSED:
        return _short(next(iter(row["failed"].values())))
    return "; ".join(f"{check}: {_short(reason)}" for check, reason in row["failed"].items())


def _short(text: str) -> str:
    """An error in a few words, without the paths of the machine."""
    lowest = re.search(r"the lowest is \S+ \((\S+?%)\)", text)
    if lowest:
        # The message names first what the most weights belong to.
        named = re.search(r"Frozen are (.*?)\. Raise", text)
        # Where the row has only the beginning of the message, its last reason may be cut.
        reasons = [r for r in re.findall(r"\d+ channels: ([^;(]*[^;( ])", named[1]) if "..." not in r] if named else []
        return f"the lowest is {lowest[1]}; frozen above all: {', '.join(list(dict.fromkeys(reasons))[:2])}"
    text = text.partition(" [fxprune/")[0].removeprefix("FxpruneError: ")
    traced = re.match(r"Cannot trace `\w+`: in (.*?), \S*?([\w.]+:\d+): `(.*?)`: (.*)", text)
    if traced:
        module, line, code, error = traced.groups()
        reason, cut, _ = error.partition(": ")[2].partition(" ... ")
        whole, advice, _ = re.sub(r"\. (?:Wh|Ch|Move|Prune)", "\n", reason).partition("\n")
        reason = f"{whole} ..." if cut and not advice else whole
        text = f"in {module}, {line}, `{code}`: {reason}"
    return re.sub(r"(?:/[\w.+-]+)+/(?=[\w.-]+)", "", text)

"""The page of what `libraries.py` has measured."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library_checks import SAME
from shared import markdown_table

__all__ = ["write_report"]

Row = dict[str, Any]
PASSED, REFUSED, FAILED = "passed", "refused", "failed"
LESS, NOT_RUN, IN_PART = "reached 60 to 90 %", "does not run itself", "passed in part"
KINDS = (PASSED, LESS, IN_PART, REFUSED, FAILED)
# The checks at other inputs that each column counts.
ELSEWHERE = {
    "other batches": ("batch", "one sample"),
    "other sizes": ("size", "length", "sound", "states"),
    "padding": ("padding",),
    "training": ("training", "step"),
    "compiled": ("compile", "compile, size", "compile, length", "compile, batch"),
    "exported": ("export",),
}
HEAD = """# Other libraries

Models of libraries that fxprune does not know by name, pruned to half of their FLOPs with
`fxprune.prune(model, 0.5, example_inputs=..., compensate=False)`. fxprune got no other settings, and the models were
not changed. RNNs are read by a linear layer, and discriminators that return all their features give their scores
alone: otherwise all of their channels are outputs, and stay. **The weights are random and most configurations are
small** (two layers, 32 channels, 64 pixels). The table shows which libraries' code fxprune understands, not how
accurate a pruned model is. [Models](models.md) covers timm and torchvision.
"""
MEANING = """\
- *passed*: the model was traced; the result has 0.4975 to 0.5 of the FLOPs as fvcore counts them, or as many as the
  closest of all plans, which were counted (in a small model one channel is a large step), and the plan predicts the
  same counts; the outputs have the same shapes and equal the zero-masked original's within 1e-9 in float64; the
  backward pass gives gradients if the original's does. The same holds for the inputs of the second table.
- *reached 60 to 90 %*: the same, but too many channels are frozen, so the model was pruned to 0.6, 0.7, 0.8 or 0.9 of
  the FLOPs instead.
- *passed in part*: the same, but the result refuses, with an `FxpruneError` that says why, some of the inputs of the
  second table, or its training differs and `prune` warned of that.
- *refused*: `fxprune.prune` raised an `FxpruneError`.
- *failed*: anything else, with the reason below.
- *own class*: how many of those that passed [`fxprune.restore_class`](elsewhere.md#keep-your-class) returns as an
  object of the model's own class, without any settings.
"""


ELSEWHERE_MEANING = """\
For how many of the pruned models the result does what the zero-masked original does, of those whose original takes
these inputs: twice the batch and a batch of one; larger images, longer texts, sounds or series; other padding; a
training step (outputs in training mode, without dropout, and the backward pass), at twice the batch; compiled by
`torch.compile`, then called with another size or batch; exported by `torch.export`. Outputs that differ by more than
1e-9 count as the same where those of the masked original itself differ by as much when its inputs change by one part in
2^52, as after a batch normalisation over very few values.
"""


def write_report(rows: Sequence[Row], listed: int, page: Path) -> None:
    """Write the page: a table of the libraries, then what did not pass and why. `listed` models are to be tried."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["model"].partition(":")[0], []).append(row)
    of = dict(sorted(of.items(), key=lambda item: -len(item[1])))
    parts = (HEAD, _table(of), MEANING, _elsewhere(of), ELSEWHERE_MEANING, _remarks(rows, listed), _reasons(rows))
    page.write_text("\n".join(parts))
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


def _elsewhere(of: dict[str, list[Row]]) -> str:
    lines = [[library, *(_share(rows, names) for names in ELSEWHERE.values())] for library, rows in of.items()]
    everything = [row for rows in of.values() for row in rows]
    lines.append(["all", *(_share(everything, names) for names in ELSEWHERE.values())])
    return markdown_table(["library", *ELSEWHERE], lines)


def _share(rows: Sequence[Row], names: Sequence[str]) -> str:
    """How many of the rows with one of these checks did what the original does in all of them."""
    tried = [[verdict for name, verdict in row.get("elsewhere", {}).items() if name in names] for row in rows]
    same = sum(all(verdict == SAME for verdict in verdicts) for verdicts in tried if verdicts)
    return f"{same} of {sum(map(bool, tried))}"


def _remarks(rows: Sequence[Row], listed: int) -> str:
    errors = [row["error"] for row in rows if "error" in row]
    without = sum("no_backward" in row for row in rows)
    silent = sum(
        not _is_said(row, *item) for row in rows for item in row.get("elsewhere", {}).items() if "differs" in item[1]
    )
    not_run = sum(_kind(row) == NOT_RUN for row in rows)
    by_values = [f"`{row['model']}`" for row in rows if row.get("sized_by_values")]
    noisy = [f"`{row['model']}` ({row['noise']:.1e})" for row in rows if row.get("noise")]
    closest = [f"`{row['model']}` ({row['ratio']:.4f})" for row in rows if row.get("no_closer")]
    estimated = [f"`{row['model']}`" for row in rows if row.get("estimated")]
    today = dt.date.today().isoformat()
    sources = len({row["source"] for row in rows})
    return (
        f"Made on {today} by `python tests/benchmarks/libraries.py`, which lists the models. {len(errors)} models were "
        f"compared with their\nzero-masked originals; the largest error at the example is {max(errors):.1e}. Other "
        f"results than the original's at other\ninputs without a word: {silent}. Models without finite gradients in "
        f"eval mode, like their originals: {without}.\nModels that do not run themselves with these versions, or need "
        f"the network (not counted): {not_run}. Models on the list\nthat were not tried: {listed - len(rows)}. The "
        f"rows come from {sources} versions of fxprune's source.\nModels below 0.4975 of which no plan is closer: "
        f"{', '.join(closest) or 'none'}. Models compared up to their own rounding: {', '.join(noisy) or 'none'}.\n"
        f"Models with outputs whose sizes depend on values, whose FLOPs are those of the plan: "
        f"{', '.join(by_values) or 'none'}.\nModels whose FLOPs depend on values in a part that is no graph, so that "
        f"the plan's are an estimate: {', '.join(estimated) or 'none'}.\n"
    )


def _reasons(rows: Sequence[Row]) -> str:
    parts = ["## What did not pass\n"]
    for kind in (FAILED, REFUSED, IN_PART, LESS):
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
    if check in ("analyze", "prune"):
        return REFUSED if reason.startswith(("FxpruneError", "UnreachableBudgetError")) else FAILED
    return (
        IN_PART if check == "elsewhere" and all(_is_said(row, *item) for item in row["elsewhere"].items()) else FAILED
    )


def _is_said(row: Row, name: str, verdict: str) -> bool:
    """Whether an input is taken as the original takes it, or the user is told that it is not."""
    return verdict == SAME or verdict.startswith("refused") or bool(name == "training" and row["training_remarks"])


def _why(row: Row) -> str:
    kind = _kind(row)
    if kind == LESS:
        return f"{row['ratio']:.2f} of the FLOPs; {_short(row['limit'])}"
    if kind == REFUSED:
        return _short(next(iter(row["failed"].values())))
    failed = {check: reason for check, reason in row["failed"].items() if check != "elsewhere"}
    failed |= {name: verdict for name, verdict in row.get("elsewhere", {}).items() if verdict != SAME}
    return "; ".join(f"{check}: {_short(reason)}" for check, reason in failed.items())


def _short(text: str) -> str:
    """An error in a few words, without the paths of the machine."""
    lowest = re.search(r"the lowest is \S+ \((\S+?%)\)", text)
    if lowest:
        # The message names first what the most weights belong to.
        named = re.search(r"Frozen are (.*?)\. Raise", text)
        # Where the row has only the beginning of the message, its last reason may be cut.
        reasons = [r for r in re.findall(r"\d+ channels: ([^;(]*[^;( ])", named[1]) if "..." not in r] if named else []
        return f"the lowest is {lowest[1]}; frozen above all: {', '.join(list(dict.fromkeys(reasons))[:2])}"
    text = text.partition(" [fxprune/")[0].removeprefix("FxpruneError: ").removeprefix("UnreachableBudgetError: ")
    traced = re.match(r"Cannot trace `\w+`: in (.*?), \S*?([\w.]+:\d+): `(.*?)`: (.*)", text)
    if traced:
        module, line, code, error = traced.groups()
        reason, cut, _ = error.partition(": ")[2].partition(" ... ")
        whole, advice, _ = re.sub(r"\. (?:Wh|Ch|Move|Prune)", "\n", reason).partition("\n")
        reason = f"{whole} ..." if cut and not advice else whole
        text = f"in {module}, {line}, `{code}`: {reason}"
    return re.sub(r"(?:/[\w.+-]+)+/(?=[\w.-]+)", "", text)

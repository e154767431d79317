"""The model matrix as a page: docs/models.json for its table, and the summary in docs/models.md.

    python tests/benchmarks/matrix_page.py
    python tests/benchmarks/matrix_page.py --matrix docs/models.json --with-weights ROWS     more rows, into the page

Reads what `coverage.py` wrote: the matrix on the meta device of every model, and those with weights (of `models.txt`,
of `models-torchvision-beyond.txt`, of any other list), which give the column with the error.
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from many import read
from shared import DOCS, markdown_table, parser_of

Row = dict[str, Any]
BEGIN, END = "<!-- made by tests/benchmarks/matrix_page.py -->", "<!-- until here -->"
COLUMNS = ("model", "family", "groups", "channels", "frozen", "flops", "ratio", "seconds", "error", "failed", "blocks")


def compact(rows: Iterable[Row], with_weights: dict[str, Row]) -> dict[str, Any]:
    """What the page's table needs, failures first: names of columns, reasons, and one list for each model.

    `frozen` is a flat list of pairs: the number of a reason, and how many channels are frozen for it. `wrong` says of
    models that fail with weights what is wrong, `untrained` names those with weights that were not trained a step.
    """
    reasons: dict[str, int] = {}
    table = []
    for row in sorted(rows, key=lambda row: (row["ok"], row["model"])):
        name = row["model"].removeprefix("meta:")
        frozen = [
            n for why, count in row.get("frozen", {}).items() for n in (reasons.setdefault(why, len(reasons)), count)
        ]
        flops = row.get("flops_before")
        other = with_weights.get(name, {})
        error = other.get("error")
        table.append(
            [
                name,
                row.get("family", "").removeprefix("timm.models.").removeprefix("torchvision.models."),
                row.get("groups"),
                row.get("channels"),
                frozen,
                None if flops is None else round(flops / 1e6, 1),
                row.get("ratio"),
                row.get("prune_seconds"),
                None if error is None else float(f"{error:.1e}"),
                "; ".join(f"{check}: {reason}" for check, reason in row["failed"].items()),
                row.get("blocks", other.get("blocks")),
            ]
        )
    wrong = {name: row["failed"] for name, row in with_weights.items() if not row["ok"]}
    untrained = sorted(name for name, row in with_weights.items() if not row.get("trained", True))
    return {"columns": COLUMNS, "reasons": list(reasons), "wrong": wrong, "untrained": untrained, "rows": table}


def expand(data: dict[str, Any]) -> tuple[list[Row], dict[str, Row]]:
    """The rows that `compact` made the table of, as far as the page needs them, and those with weights by name."""
    rows, with_weights = [], {}
    for values in data["rows"]:
        entry = dict(zip(data["columns"], values, strict=True))
        pairs = zip(entry["frozen"][::2], entry["frozen"][1::2], strict=True)
        row: Row = {
            "model": entry["model"],
            "family": entry["family"],
            "groups": entry["groups"],
            "channels": entry["channels"],
            "frozen": {data["reasons"][number]: count for number, count in pairs},
            "ratio": entry["ratio"],
            "prune_seconds": entry["seconds"],
            "ok": not entry["failed"],
            "failed": dict([entry["failed"].split(": ", 1)]) if entry["failed"] else {},
        }
        if entry["flops"] is not None:
            row["flops_before"] = entry["flops"] * 1e6
        # A table that was made before blocks were counted does not have this column.
        if entry.get("blocks") is not None:
            row["blocks"] = entry["blocks"]
        rows.append(row)
        error = entry["error"]
        if error is not None:
            failed = data["wrong"].get(entry["model"], {})
            with_weights[entry["model"]] = {
                "model": entry["model"],
                "error": error,
                "ok": not failed,
                "failed": failed,
                "trained": entry["model"] not in data["untrained"],
            }
    return rows, with_weights


def summary(rows: list[Row], with_weights: dict[str, Row], date: str) -> str:
    """The outcome in Markdown."""
    passed = [row for row in rows if row["ok"]]
    failures = [row for row in rows if not row["ok"]]
    ratios = [row["ratio"] for row in passed]
    seconds = [row["prune_seconds"] for row in passed]
    libraries = Counter(row["model"].removeprefix("meta:").partition(":")[0] for row in rows)
    errors = [row["error"] for row in with_weights.values() if row["ok"] and "error" in row]
    wrong = [row for row in with_weights.values() if not row["ok"]]
    trained = sum(row.get("trained", True) for row in with_weights.values())
    of_libraries = ", ".join(f"{n:,} of {library}" for library, n in libraries.most_common())
    counts = [
        ["tried", f"{len(rows):,} ({of_libraries})"],
        ["pass on the meta device", f"{len(passed):,}"],
        ["fail on the meta device", f"{len(failures):,}"],
        ["also checked with weights: run, compared in float64, saved and loaded", f"{len(with_weights):,}"],
        ["of these, also trained for a step", f"{trained:,}"],
        ["pass with weights", f"{len(with_weights) - len(wrong):,}; largest error {max(errors):.1e}"],
        ["fail with weights", f"{len(wrong):,}"],
    ]
    lines = [
        f"As of {date}:",
        "",
        markdown_table(["", "models"], counts),
        f"FLOPs of the result: {min(ratios):.4f} to {max(ratios):.4f} of the original's; the budget was 0.5.",
        *_about_blocks([row["blocks"] for row in rows if "blocks" in row]),
        f"CPU time of all steps: median {statistics.median(seconds):.1f} s, maximum {max(seconds):.1f} s.",
    ]
    for title, rows_of in (("on the meta device", failures), ("with weights", wrong)):
        if rows_of:
            lines += ["", f"Failures {title}:", ""]
        for row in rows_of:
            reason = "; ".join(f"{check}: {text.partition(' [')[0]}" for check, text in row["failed"].items())
            lines.append(f"- `{row['model'].removeprefix('meta:')}`: {reason}")
    frozen: Counter[str] = Counter(why for row in rows for why in row.get("frozen", {}))
    lines += ["", '<details markdown="1">', "<summary>Why channels are frozen, and in how many models</summary>", ""]
    lines += [markdown_table(["reason", "models"], [[why, f"{count:,}"] for why, count in frozen.most_common()])]
    lines += ["</details>"]
    return "\n".join(lines)


def _about_blocks(counts: list[int]) -> list[str]:
    if not counts:
        return []
    having = [count for count in counts if count]
    middle = f"; the median of these has {statistics.median(having):.0f}" if having else ""
    return [f"Blocks that can be left out: {len(having):,} of {len(counts):,} models have some{middle}."]


def main() -> None:
    """Write both files."""
    parser = parser_of(__doc__)
    parser.add_argument("--matrix", type=Path, default=Path("build/coverage-all.jsonl"))
    parser.add_argument("--with-weights", type=Path, nargs="+", default=[Path("build/coverage.jsonl")])
    options = parser.parse_args()
    with_weights: dict[str, Row] = {}
    if options.matrix.suffix == ".json":
        rows, with_weights = expand(json.loads(options.matrix.read_text()))
    else:
        rows = list(read(options.matrix).values())
    for path in options.with_weights:
        with_weights |= {spec.partition(" ")[0]: row for spec, row in read(path).items()}
    if not rows:
        raise SystemExit(f"{options.matrix} has no results: nox -s coverage -- all --output {options.matrix}")
    data = compact(rows, with_weights)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in data["rows"])
    head = json.dumps({name: part for name, part in data.items() if name != "rows"}, separators=(",", ":"))
    (DOCS / "models.json").write_text(f'{head[:-1]},"rows":[\n{lines}\n]}}\n')
    date = dt.date.fromtimestamp(options.matrix.stat().st_mtime).isoformat()
    page = DOCS / "models.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{summary(rows, with_weights, date)}\n\n{END}{after}")
    print(f"{len(rows)} models, {(DOCS / 'models.json').stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

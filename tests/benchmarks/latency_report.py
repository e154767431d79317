"""The page docs/latency.md, from the rows of latency.py and latency_budget.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

from shared import DOCS, markdown_table

__all__ = ["write_report"]

PAGE = DOCS / "latency.md"
INTRODUCTION = """# Budgets of time

<!-- not run: a machine that runs tests is too busy to time models -->
```python
small = fxprune.prune(model, latency=0.6)             # at most 60 % of the time that the model takes here
small = fxprune.prune(model, flops=0.5, latency=1)    # half of the FLOPs; time decides what goes
```

A model with half of the FLOPs seldom takes half of the time: depthwise convolutions, normalisation, activations and
pooling cost hardly any FLOPs, but time. With a `latency`, fxprune runs the model node by node on its device, with its
example inputs and the threads that torch is set to, and knows what time each channel costs
([`fxprune.time_channels`](api-measure.md)). A channel's worth is then set against the time that it takes instead of its
FLOPs. The plan is made for the budget, the pruned model is timed in turns with the original, and the plan is made again
until the measured time is just within the budget. Where both budgets are given, both are kept.

Times differ from machine to machine and from run to run, so plans by time are not the same each time, and a result is
fast where it was measured: prune on the device that the model is for, with nothing else running. fxprune warns when the
times vary too much to tell.
"""


def write_report(rows: Sequence[dict[str, Any]]) -> None:
    """Write the page; the last row of each version, or budget, counts."""
    speed = {(row["model"], row.get("batch"), row["version"]): row for row in rows if row["kind"] == "speed"}
    budget = {(row["budget"], row["by"]): row for row in rows if row["kind"] == "budget"}
    parts = [INTRODUCTION]
    if budget:
        parts.append(_budgets(list(budget.values())))
    if speed:
        parts.append(_speeds(list(speed.values())))
    parts.append(f"Made on {date.today()} by `latency.py` and `latency_budget.py` in `tests/benchmarks/`.\n")
    PAGE.write_text("\n".join(parts))


def _budgets(rows: Sequence[dict[str, Any]]) -> str:
    head = f"""## What it is worth

EfficientNet-Lite0 with its ImageNet weights, 128 photographs without labels to score and compensate on, no training:
how often the pruned model says the same class as the original on {rows[0]["judged"]} crops of other scenes. Both ways
plan until the measured time is within the budget; only what a channel's worth is set against differs. One run, all
models timed in turns on one thread.
"""
    heads = ("budget of time", "chosen by", "measured time", "FLOPs", "agreement")
    lines = [
        [f"{row['budget']:.0%}", row["by"], f"{row['latency']:.1%}", f"{row['flops']:.1%}", f"{row['agreement']:.2f}"]
        for row in sorted(rows, key=lambda row: (-row["budget"], row["by"]))
    ]
    return f"{head}\n{markdown_table(heads, lines)}"


def _speeds(rows: Sequence[dict[str, Any]]) -> str:
    head = """## Speed at half of the FLOPs

The last column is the speed-up as a part of the ideal, which is what it were if time went by FLOPs: half of the FLOPs,
twice as fast. *By time* is `prune(model, flops=0.5, latency=1)`, *uniform* is `prune(model, flops=0.5,
method="uniform")`, all layers alike: what a score keeps whole for the sake of accuracy, as the residual stream of a
ResNet, takes its whole time in additions and normalisation. The number behind is `round_to`. Torch-Pruning 1.6.1 prunes
with group magnitude, all layers alike, its default. Random weights; the versions of a model were timed in turns.
"""
    return "\n".join([head, *(_speeds_of(how, [*group]) for how, group in itertools.groupby(rows, _how(rows)))])


def _how(rows: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    """How a row was measured; one that was not, since there is no such version, as the others of its model."""
    known = {(row["model"], row.get("batch")): row["how"] for row in rows if "how" in row}
    return lambda row: str(known[row["model"], row.get("batch")])


def _speeds_of(how: str, rows: Sequence[dict[str, Any]]) -> str:
    heads = ("model", "batch", "version", "FLOPs", "median ms", "interquartile range", "speed-up", "of the ideal")
    lines = []
    for row in rows:
        what = (row["model"], str(row.get("batch", "")), row["version"])
        if "fails" in row:
            lines.append([*what, "fails", "", "", "", ""])
            continue
        gain = row["original"] / row["seconds"]
        milliseconds, spread = (f"{row[name] * 1e3:.1f}" for name in ("seconds", "spread"))
        lines.append([*what, f"{row['flops']:.1%}", milliseconds, spread, f"{gain:.2f}", f"{gain * row['flops']:.2f}"])
    return f"### {how}\n\n{markdown_table(heads, lines)}"

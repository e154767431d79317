"""The page docs/latency.md, from the rows of latency.py and latency_budget.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

from shared import DOCS, markdown_table

__all__ = ["write_report"]

PAGE = DOCS / "latency.md"
KEPT = ("<!-- kept: rows of GPUs, which are not in results/ -->\n", "<!-- until here -->\n")
INTRODUCTION = """# Time budgets

<!-- not run: a machine that runs tests is too busy to time models -->
```python
small = fxprune.prune(model, latency=0.6)             # at most 60 % of the time that the model takes here
small = fxprune.prune(model, latency="3ms")           # at most 3 milliseconds here
small = fxprune.prune(model, flops=0.5, latency=1)    # half of the FLOPs; channels are chosen by time
```

A model with half of the FLOPs rarely takes half of the time: depthwise convolutions, normalisation, activations and
pooling have few FLOPs but take time. If you give a `latency`, fxprune runs the model node by node on its device, with
its example inputs and torch's current number of threads, and so measures how much time each channel costs
([`fxprune.time_channels`](api-measure.md)). It then weighs the importance of a channel against its time instead of its
FLOPs. fxprune makes a plan for the budget, times the pruned model and the original in turns, and adjusts the plan until
the measured time is just within the budget. If you give both budgets, the result meets both.

Times differ between machines and between runs. Plans by time are therefore not the same each time, and a result is fast
on the device where it was measured. Prune on the device that will run the model, with nothing else running. fxprune
warns if the times vary too much.
"""


def write_report(rows: Sequence[dict[str, Any]]) -> None:
    """Write the page; the last row of each version, or budget, counts. What is marked as kept stays in it."""
    speed = {(row["model"], row.get("batch"), row["version"]): row for row in rows if row["kind"] == "speed"}
    budget = {(row["budget"], row["by"]): row for row in rows if row["kind"] == "budget"}
    parts = [INTRODUCTION]
    if budget:
        parts.append(_budgets(list(budget.values())))
    if speed:
        parts.append(_speeds(list(speed.values())))
    begin, end = KEPT
    parts.append(begin + PAGE.read_text().partition(begin)[2].partition(end)[0] + end)
    parts.append(f"Made on {date.today()} by `latency.py` and `latency_budget.py` in `tests/benchmarks/`.\n")
    PAGE.write_text("\n".join(parts))


def _budgets(rows: Sequence[dict[str, Any]]) -> str:
    head = f"""## What it gains

EfficientNet-Lite0 with its ImageNet weights, scored and compensated on 128 photographs without labels, not trained.
*Agreement* is how often the pruned model predicts the same class as the original on {rows[0]["judged"]} crops of other
scenes. Both variants adjust the plan until the measured time is within the budget; they differ only in whether
importance is weighed against FLOPs or against time. One run on {rows[0]["made"]}, all models timed in turns on one
thread.
"""
    heads = ("time budget", "channels chosen by", "measured time", "FLOPs", "agreement")
    lines = [
        [f"{row['budget']:.0%}", row["by"], f"{row['latency']:.1%}", f"{row['flops']:.1%}", f"{row['agreement']:.2f}"]
        for row in sorted(rows, key=lambda row: (-row["budget"], row["by"]))
    ]
    return f"{head}\n{markdown_table(heads, lines)}"


def _speeds(rows: Sequence[dict[str, Any]]) -> str:
    head = """## Speed at half of the FLOPs

The last column is the speed-up as a fraction of the ideal speed-up, which time proportional to FLOPs would give: half
of the FLOPs, twice the speed. *By time* is `prune(model, flops=0.5, latency=1)`. *Uniform* is
`prune(model, flops=0.5, method="uniform")`, the same ratio in all groups. (Other scores keep some groups whole for
accuracy, such as the residual stream of a ResNet; its additions and normalisation then take as long as before.)
*Blocks alone* is `prune(model, flops=0.5, width=False)`: no layer changes, whole residual branches go. *With blocks* is
`prune(model, flops=0.5)` with data, by FLOPs or by time, where channels and blocks go; what the data, here eight random
inputs, say of the outputs decides how many of either, not the time. The number after the version is `round_to`.
Torch-Pruning 1.6.1 runs with its default, group magnitude and the same ratio in all layers. Random weights; the
versions of a model were timed in turns.
"""
    return "\n".join([head, *(_speeds_of(how, [*group]) for how, group in itertools.groupby(rows, _how(rows)))])


def _how(rows: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    """How a row was measured. A version that could not be made belongs to the other versions of its model."""
    known = {(row["model"], row.get("batch")): row["how"] for row in rows if "how" in row}
    return lambda row: str(known[row["model"], row.get("batch")])


def _speeds_of(how: str, rows: Sequence[dict[str, Any]]) -> str:
    heads = ("model", "batch", "version", "FLOPs", "median ms", "interquartile range", "speed-up", "fraction of ideal")
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

"""Tables and plots of what `fashion.py compare` has measured."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import figure, markdown_table, palette

__all__ = ["table", "write_report"]

Row = dict[str, Any]
SETTINGS = ("epochs", "images", "lr", "distill", "temperature")
# Methods whose difference is told, seed by seed.
PAIRS = (("joint", "channels"), ("joint", "dagger"), ("dagger", "surgeon"))
# Student's t of 95 % on both sides, by the number of seeds.
QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
STAGES = {"raw": "pruned", "compensated": "compensated", "tuned": "fine-tuned"}


def write_report(rows: Sequence[Row], without_data: Sequence[Row], out: Path) -> None:
    """Write `index.md` and one plot a net into a folder, of the runs with the settings of the last one."""
    rows = [row for row in rows if all(row[key] == rows[-1][key] for key in SETTINGS)]
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for net in _in_order(rows, "net"):
        mine = [row for row in rows if row["net"] == net]
        base = mine[0]["base"]
        parts.append(f"## {net}\n\nUnpruned: {100 * base:.2f} %.\n\n{table(mine)}\n![{net}]({net}.svg)\n")
        parts += [_paired(mine, *pair) for pair in PAIRS if {*pair} <= {row["method"] for row in mine}]
        _plot(mine, out / f"{net}.svg")
    if without_data:
        parts.append(_without_data(without_data))
    (out / "index.md").write_text(_head(rows) + "\n".join(parts))


def _without_data(rows: Sequence[Row]) -> str:
    """Accuracy of what `prune` makes without data, one column a net."""
    nets = _in_order(rows, "net")
    budget = rows[0]["budget"]
    bases = [next(row["base"] for row in rows if row["net"] == net) for net in nets]
    lines = [["unpruned", *(f"{100 * base:.2f}" for base in bases)]]
    for method in _in_order(rows, "method"):
        mine = [row for row in rows if row["method"] == method]
        lines.append([method, *(_cell([row["compensated"] for row in mine if row["net"] == net]) for net in nets)])
    return (
        f"## No data, {100 * budget:g} % FLOPs, not fine-tuned\n\n"
        f"`fxprune.prune(net, {budget:g}, method=...)`, on a batch generated from the BatchNorm statistics.\n\n"
        f"{markdown_table(['method', *nets], lines)}"
    )


def table(rows: Sequence[Row]) -> str:
    """Test accuracy in percent, mean ± standard deviation over the seeds; the best fine-tuned at all budgets first."""
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    stages = [stage for stage in STAGES if any(row[stage] is not None for row in rows)]
    heads = [f"{100 * budget:g} % FLOPs: {STAGES[stage]}" for budget in budgets for stage in stages]
    lines = []

    def tuned(method: str) -> tuple[int, float]:
        mine = [row for row in rows if row["method"] == method]
        return len({row["budget"] for row in mine}), statistics.mean(row["tuned"] for row in mine)

    for method in sorted(_in_order(rows, "method"), key=tuned, reverse=True):
        cells = []
        for budget in budgets:
            at = [row for row in rows if row["method"] == method and row["budget"] == budget]
            cells += [_cell([row[stage] for row in at if row[stage] is not None]) for stage in stages]
        lines.append([method, *cells])
    return markdown_table(["method", *heads], lines)


def _paired(rows: Sequence[Row], one: str, other: str) -> str:
    """How much better one method is than another with the same seeds: mean and half of the 95 % interval, in points."""
    found = {(row["method"], row["budget"], row["seed"]): row for row in rows}
    said = []
    for budget, stage in itertools.product(
        sorted({row["budget"] for row in rows}, reverse=True), ("compensated", "tuned")
    ):
        pairs = [(found.get((one, budget, seed)), found.get((other, budget, seed))) for seed in range(len(rows))]
        differences = [
            100 * (mine[stage] - theirs[stage])
            for mine, theirs in pairs
            if mine and theirs and mine[stage] is not None and theirs[stage] is not None
        ]
        if len(differences) in QUANTILES:
            count = len(differences)
            half = QUANTILES[count] * statistics.stdev(differences) / count**0.5
            said.append(f"{100 * budget:g} % {STAGES[stage]} {statistics.mean(differences):+.2f} ± {half:.2f}")
    return f"*{one}* less *{other}*, in points, with 95 % intervals over seeds: {'; '.join(said)}.\n" if said else ""


def _head(rows: Sequence[Row]) -> str:
    if not rows:
        return "Nothing has been measured yet.\n"
    one = rows[0]
    weighted = f"a distillation loss of weight {one['distill']:g} and temperature {one['temperature']:g}"
    teacher = f", with {weighted} on the unpruned net's outputs" if one["distill"] else ""
    calls = (
        " *joint* is `fxprune.prune(net, budget, data=images)` with the same 128 images and nothing else, *channels* "
        "the same with `depth=False`."
        if any(row["method"] == "joint" for row in rows)
        else ""
    )
    of_peer = any(row["method"].startswith("tp-") for row in rows)
    peer = " `tp-` is Torch-Pruning 1.6.1 at the same FLOPs." if of_peer else ""
    epochs = f"{one['epochs']} epoch{'s' * (one['epochs'] > 1)}"
    return (
        "# Fashion-MNIST\n\n"
        "Test accuracy in percent (10,000 images) of each net: after pruning, after compensation on 128 training "
        f"images without labels, and after {epochs} of fine-tuning on {one['images']:,} images{teacher}. Mean ± "
        f"standard deviation over {len({row['seed'] for row in rows})} seeds; values without a deviation are from one "
        f"seed.{peer}{calls} Made by "
        "`python tests/benchmarks/fashion.py report`.\n\n"
    )


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _in_order(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against FLOPs: one panel a stage, one line a method, a bar from the worst seed to the best."""
    stages = [stage for stage in STAGES if any(row[stage] is not None for row in rows)]
    base = 100 * rows[0]["base"]
    with figure(path, len(stages), (4.6 * len(stages), 4.2)) as panels:
        for panel, stage in zip(panels, stages, strict=True):
            for colour, method in zip(itertools.cycle(palette("tab20")), _in_order(rows, "method"), strict=False):
                points = _points([row for row in rows if row["method"] == method and row[stage] is not None], stage)
                if not points:
                    continue
                share, mean, low, high = zip(*points, strict=True)
                below = [m - bottom for m, bottom in zip(mean, low, strict=True)]
                above = [top - m for m, top in zip(mean, high, strict=True)]
                look = {
                    "color": colour,
                    "linewidth": 2.5 if method == "dagger" else 1.2,
                    "linestyle": "--" if method.startswith("tp-") else "-",
                }
                x, y, spread = (*share, 100), (*mean, base), ((*below, 0), (*above, 0))
                panel.errorbar(x, y, spread, label=method, capsize=2, marker="o", markersize=3, **look)
            panel.set(title=STAGES[stage], xlabel="FLOPs, % of the unpruned net", ylabel="test accuracy, %")
            panel.grid(alpha=0.3)
        panels[-1].legend(fontsize=7)


def _points(rows: Sequence[Row], stage: str) -> list[tuple[float, float, float, float]]:
    """For each budget: FLOPs, and the mean, lowest and highest accuracy of the seeds, all in percent."""
    points = []
    for budget in sorted({row["budget"] for row in rows}):
        at = [row for row in rows if row["budget"] == budget]
        values = [100 * row[stage] for row in at]
        points.append((100 * at[0]["share"], statistics.mean(values), min(values), max(values)))
    return points

"""Table and plot of what `photographs.py` has measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared import figure, markdown_table, palette

__all__ = ["DEFAULT_CALL", "NO_DATA", "PHOTOGRAPHS", "write_report"]

Row = dict[str, Any]
# Samples that a user has; other samples give upper bounds.
PHOTOGRAPHS, NO_DATA = "photographs", "no data"
# The method whose rows are of `fxprune.prune` with its defaults, blocks among them.
DEFAULT_CALL = "prune"


def write_report(rows: Sequence[Row], out: Path) -> None:
    """Write `index.md` and `agreement.svg` into a folder; of equal runs the last one counts."""
    latest = {(row["source"], row["method"], row["budget"]): row for row in rows}
    out.mkdir(parents=True, exist_ok=True)
    at_hand = [row for row in latest.values() if row["source"] in (PHOTOGRAPHS, NO_DATA)]
    bounds = [row for row in latest.values() if row not in at_hand]
    (out / "index.md").write_text(_page(at_hand, bounds))
    _plot(at_hand, out / "agreement.svg")


def _page(rows: list[Row], bounds: list[Row]) -> str:
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    samples = {row["source"]: row["samples"] for row in rows}
    origin = next((row["origin"] for row in rows if row["source"] == NO_DATA), "not measured")
    made = sorted({row["made"] for row in rows})
    sources = ", ".join(f"{count} of *{source}*" for source, count in samples.items())
    head = (
        "# Photographs\n\n"
        "EfficientNet-Lite0 with its ImageNet weights, pruned and not trained afterwards. The table shows how often it "
        f"predicts the same class as the original, on {rows[0]['judged']} crops of photographs of scenes that were "
        f"used neither for scores nor for compensation. Samples for scores and compensation: {sources}; those of "
        f"*no data*: {origin}. Each cell has the agreement before and after compensation. "
        f"*{DEFAULT_CALL}* is `fxprune.prune` with its defaults, which leaves out blocks too; the other methods score "
        "channels alone. One run each, not to be repeated to the digit on another machine; made "
        f"{' to '.join(dict.fromkeys((made[0], made[-1])))} by `python tests/benchmarks/photographs.py`.\n\n"
        f"For comparison, the original agrees with itself on {rows[-1]['mirrored']:.2f} of these crops after "
        f"mirroring, and on {rows[-1]['moved']:.2f} after a shift by four pixels.\n"
    )
    agreements = _table(rows, budgets, lambda row: f"{row['cut']:.2f} → {row['compensated']:.2f}")
    divergences = _table(rows, budgets, lambda row: f"{row['divergence']:.3f}")
    return (
        f"{head}\n{agreements}\n![Agreement against FLOPs](agreement.svg)\n\n"
        "Mean Kullback-Leibler divergence of the class probabilities from the original's after compensation, in nats. "
        f"It depends less on chance than the top class:\n\n{divergences}{_limits(bounds, budgets)}"
    )


def _limits(bounds: list[Row], budgets: list[float]) -> str:
    if not bounds:
        return ""
    table = _table(bounds, budgets, lambda row: f"{row['compensated']:.2f} ({row['divergence']:.3f})")
    return (
        "\n## Upper bounds\n\n"
        "Agreement after compensation and, in brackets, the divergence, if the crops used for judging are also used "
        f"for scores or compensation ({bounds[0]['judged']} crops, made {bounds[0]['made']}). The difference from the "
        "table above is due to the difference between seen and unseen scenes. What is still lost is the limit of the "
        f"score and of compensation.\n\n{table}"
    )


def _table(rows: list[Row], budgets: list[float], cell: Callable[[Row], str]) -> str:
    lines = []
    for source, method in _runs(rows):
        at = {row["budget"]: cell(row) for row in rows if (row["source"], row["method"]) == (source, method)}
        lines.append([source, method, *(at.get(budget, "") for budget in budgets)])
    return markdown_table(["samples", "method", *(f"{100 * budget:g} % FLOPs" for budget in budgets)], lines)


def _runs(rows: list[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["source"], row["method"]) for row in rows))


def _plot(rows: list[Row], path: Path) -> None:
    """Agreement against FLOPs: a panel for the cut and one for the compensated model, a line for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with figure(path, 2, (9.2, 4.2), sharey=True) as panels:
        for panel, (stage, title) in zip(panels, {"cut": "pruned", "compensated": "compensated"}.items(), strict=True):
            for source, method in _runs(rows):
                at = sorted(
                    (row["budget"], row[stage]) for row in rows if (row["source"], row["method"]) == (source, method)
                )
                budgets, agreements = zip(*at, (1.0, 1.0), strict=True)
                panel.plot(
                    [100 * budget for budget in budgets],
                    agreements,
                    "--" if source == NO_DATA else "-",
                    color=palette("tab10")[methods.index(method)],
                    marker="o",
                    markersize=3,
                    label=f"{method}, {source}",
                )
            panel.set(title=title, xlabel="FLOPs, % of the original")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("same class as the original")
        panels[1].legend(fontsize=7)

"""Tables and plots of what `quality.py` has measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared import figure, markdown_table, palette

__all__ = ["write_report"]

Row = dict[str, Any]
NAMES = {
    "no data": "no data",
    "16": "16 samples",
    "128": "128 samples",
    "channels": "128 samples, channels alone",
    "blocks": "128 samples, blocks alone",
    "bare": "128 samples, channels alone, not compensated",
    "torch-pruning": "Torch-Pruning, BatchNorm on 128 samples",
}


def write_report(rows: Sequence[Row], out: Path) -> None:
    """Write `index.md` and `quality.svg` into a folder; of equal runs the last one counts."""
    latest = list({(row["net"], row["way"], row["budget"]): row for row in rows}.values())
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.md").write_text(_page(latest))
    _plot([row for row in latest if "value" in row], out / "quality.svg")


def _page(rows: Sequence[Row]) -> str:
    made = sorted({row["made"] for row in rows})
    text = (
        "# Quality without training\n\n"
        "What pruned networks with trained weights are worth before any training, by how many samples they were pruned "
        "with: `prune(model, flops=budget)` for *no data*, `prune(model, flops=budget, data=samples)` for the others. "
        "Samples need no labels. They are photographs of other scenes, or other sentences, than those that judge. "
        "Torch-Pruning runs with its default importance, with the statistics of BatchNorms estimated anew on the "
        "samples, which it leaves to its users.\n\n"
        "Of EfficientNet-Lite the tables show how often the pruned model predicts the same class as the original and, "
        "in brackets, the divergence of its class probabilities in nats; of MiniLM, a sentence encoder, the mean "
        "cosine of both models' embeddings; of NudeNet, a YOLOv8n from ONNX, the F1 score of its detections, with "
        "those of the original as truth. Seconds are CPU seconds of the call at the first budget of the table, on one "
        "thread. One run each, not to be repeated to the digit on another machine; made "
        f"{' to '.join(dict.fromkeys((made[0], made[-1])))} by `python tests/benchmarks/quality.py`.\n\n"
        "![Quality by FLOPs](quality.svg)\n"
    )
    for net in dict.fromkeys(row["net"] for row in rows):
        mine = [row for row in rows if row["net"] == net]
        text += f"\n## {net}\n\nOn {mine[-1]['judged']}:\n\n{_table(mine)}"
    return text


def _table(rows: Sequence[Row]) -> str:
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        at = {row["budget"]: row for row in rows if row["way"] == way}
        if any("value" in row for row in at.values()):
            seconds = f"{first['seconds']:.0f}" if "seconds" in (first := at.get(budgets[0], {})) else ""
            lines.append(
                [NAMES.get(way, f"{way} samples"), *(_cell(at.get(budget, {})) for budget in budgets), seconds]
            )
    return markdown_table(["pruned with", *(f"{100 * budget:g} % FLOPs" for budget in budgets), "seconds"], lines)


def _cell(row: Row) -> str:
    if "value" not in row:
        return "fails" if "fails" in row else ""
    blocks = f", {row['blocks']} block{'s' * (row['blocks'] > 1)}" if row["blocks"] else ""
    more = f" ({row['divergence']:.3f}{blocks})" if "divergence" in row else f" ({blocks[2:]})" if blocks else ""
    return f"{row['value']:.2f}{more}"


def _plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each network, a line for each number of samples."""
    nets = list(dict.fromkeys(row["net"] for row in rows))
    ways = [way for way in NAMES if any(row["way"] == way for row in rows)]
    with figure(path, len(nets), (3.1 * len(nets), 3.6), sharey=True) as panels:
        for panel, net in zip(panels, nets, strict=True):
            for number, way in enumerate(ways):
                mine = sorted((row["budget"], row["value"]) for row in rows if (row["net"], row["way"]) == (net, way))
                if mine:
                    budgets, values = zip(*mine, (1.0, 1.0), strict=True)
                    shares = [100 * budget for budget in budgets]
                    panel.plot(
                        shares, values, color=palette("tab10")[number], marker="o", markersize=3, label=NAMES[way]
                    )
            measure = next(row["measure"] for row in rows if row["net"] == net)
            panel.set(title=f"{net}\n{measure}", xlabel="FLOPs, % of the original")
            panel.grid(alpha=0.3)
        # Where there is most room below the lines.
        roomiest = max(
            zip(nets, panels, strict=True), key=lambda at: min(r["value"] for r in rows if r["net"] == at[0])
        )
        roomiest[1].legend(*panels[0].get_legend_handles_labels(), loc="lower right", fontsize=6)

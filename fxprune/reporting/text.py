"""A report as tables in the terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.reporting.numbers import TIMES, arrow, bytes_of, count, milliseconds, percent, speedup, threads

if TYPE_CHECKING:
    from fxprune.reporting.facts import GroupFacts
    from fxprune.reporting.report import Report

__all__ = ["facts", "plain", "rendered", "summary"]

# Nobody reads a longer table; `Report.groups` and the page have all of it. Not tuned.
_MOST_GROUPS = 60


def plain(report: Report) -> str:
    """The tables as plain text, as wide as the terminal."""
    out = io.StringIO()
    width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 160))
    Console(file=out, width=width, color_system=None, force_terminal=False).print(rendered(report))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def rendered(report: Report) -> RenderableType:
    """The tables."""
    parts: list[RenderableType] = [_groups(report)]
    if report.frozen:
        parts.append(_frozen(report))
    return Group(*parts, "", summary(report))


def summary(report: Report) -> RenderableType:
    """The facts of the whole model, as lines."""
    lines = Table.grid(padding=(0, 2))
    for name, value in facts(report):
        lines.add_row(Text(name, style="bold"), value)
    return lines


def facts(report: Report) -> list[tuple[str, str]]:
    """The facts of the whole model: name and value."""
    others = {report.latency_target, report.params_target, report.memory_target}
    limited = others == {None} or report.flops_target < (report.flops.before or 0)
    target = f", budget {count(report.flops_target)}" if limited else ""
    on_time = _budget(report.latency_target)
    lines = [
        ("model", f"{report.model}, input {report.inputs}"),
        ("FLOPs", f"{_whole(report.flops.before, report.flops.after)}{target}"),
        ("parameters", f"{_whole(report.parameters.before, report.parameters.after)}{_budget(report.params_target)}"),
    ]
    if report.method:
        lines.append(("scores", report.method))
    if report.blocks:
        lines.append(("left out", f"{count(len(report.blocks))} blocks: {', '.join(report.blocks)}"))
    if report.compensated:
        lines.append(("weights", f"compensated: {', '.join(report.compensated)}"))
    if report.samples:
        lines.append(("no data given", f"used {report.samples}"))
    if report.certificate is not None:
        verdict = "equals" if report.certificate.holds else "DIFFERS FROM"
        what = "outputs"
        if report.certificate.of == "structure":
            rebuilt = ", rebuilt with random weights" if report.certificate.against == "rebuilt" else ""
            what = f"structure, with slices of its weights{rebuilt}"
        error = f"largest relative difference {report.certificate.error:.1e}"
        lines.append(("certificate", f"{verdict} the zero-masked original ({what}): {error}"))
    if report.latency is not None:
        first, second = report.latency
        time = milliseconds(second.seconds)
        if first is not None:
            time = f"{milliseconds(first.seconds)} → {time}, speedup {speedup(second.seconds / first.seconds)}"
        lines.append(("latency", f"{time}, {second.device}, {threads(second.threads)}{on_time}"))
    elif on_time:
        lines.append(("latency", f"measured during pruning{on_time}"))
    lines.append(("memory", _memory(report)))
    if report.memory_target is not None:
        before, after = report.memory
        now = "not counted" if after.activations is None else bytes_of(after.activations)
        if before is not None and before.activations and after.activations is not None:
            now = f"{bytes_of(before.activations)} → {now} ({percent(after.activations / before.activations)})"
        lines.append(("activations", f"{now}{_budget(report.memory_target)}"))
    lines.extend(("note", remark) for remark in report.remarks)
    return lines


def _budget(target: float | None) -> str:
    return "" if target is None else f", budget {percent(target)}"


def _memory(report: Report) -> str:
    before, after = report.memory
    weights = bytes_of(after.weights) if before is None else f"{bytes_of(before.weights)} → {bytes_of(after.weights)}"
    if after.peak is None:
        return f"{weights} of weights"
    peak = bytes_of(after.peak)
    if before is not None and before.peak is not None:
        peak = f"{bytes_of(before.peak)} → {peak}"
    return f"{weights} of weights, {peak} at the peak of a forward pass"


def _whole(before: int | None, after: int) -> str:
    if before is None:
        return count(after)
    return f"{count(before)} → {count(after)} ({percent(after / max(before, 1))})"


def _groups(report: Report) -> Table:
    table = Table(title=f"{report.model}: groups of channels", title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("layers", overflow="fold")
    for name in ("channels", "FLOPs", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in _most_changed(report.groups):
        repeats = f" {TIMES}{group.repeats}" if group.repeats > 1 else ""
        name = f"{group.name} (only if needed)" if group.last_resort else group.name
        table.add_row(
            name,
            _layers(group.layers),
            f"{arrow(group.channels)}{repeats}",
            arrow(group.flops),
            arrow(group.parameters),
        )
    hidden = len(report.groups) - _MOST_GROUPS
    if hidden > 0:
        table.add_row(f"... and {hidden} more", "", "", "", "")
    return table


def _most_changed(groups: Sequence[GroupFacts]) -> list[GroupFacts]:
    """All groups, or those with the most FLOPs, in the order of the model."""
    if len(groups) <= _MOST_GROUPS:
        return list(groups)
    chosen = sorted(range(len(groups)), key=lambda k: -(groups[k].flops.before or groups[k].flops.after))
    return [groups[k] for k in sorted(chosen[:_MOST_GROUPS])]


def _frozen(report: Report) -> Table:
    table = Table(title="frozen channels", title_justify="left")
    table.add_column("why", overflow="fold")
    table.add_column("layers", overflow="fold")
    for name in ("channels", "FLOPs", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in report.frozen:
        table.add_row(
            each.reason, _layers(each.layers), count(each.channels), arrow(each.flops), arrow(each.parameters)
        )
    return table


def _layers(names: Sequence[str], most: int = 3) -> str:
    if len(names) <= most:
        return ", ".join(names) or "-"
    return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"

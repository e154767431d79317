"""A report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.reporting.charts import columns, graph, hue
from fxprune.reporting.facts import Certificate, Change, FrozenFacts, GroupFacts, LayerFacts
from fxprune.reporting.html import cell, code, legend, names_cell, number_cell, section, table, tile
from fxprune.reporting.numbers import TIMES, arrow, bytes_of, count, milliseconds, percent, short, speedup, threads
from fxprune.reporting.text import facts

if TYPE_CHECKING:
    from fxprune.reporting.report import Report

__all__ = ["page"]

# Rows of the graph; a longer one is slow to show. Not tuned.
_MOST_ROWS = 3000
# The chart leaves out layers below this fraction of the FLOPs. Not tuned.
_SMALL = 1e-3


def page(report: Report, file: str) -> str:
    """The page; `file` is the name of the pruned model's file."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    sections = (
        _tiles(report),
        section("Kept channels by layer", _kept(report.layers)),
        section("FLOPs by layer", _flops(report)),
        section("Groups", _groups(report.groups)),
        section("Graph", _graph(report)),
        section("Frozen channels", _frozen(report.frozen)) if report.frozen else "",
        section("Layers", _layers(report.layers)),
        section("Latency and memory", _measured(report)),
        section("Certificate", _certificate(report)),
        section("Load the file", _load(report, file)),
    )
    title = escape(f"{report.model}, pruned")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>\n{style}</style></head><body><main>"
        f"<h1>{title}</h1><p>Input {escape(report.inputs)}</p>{''.join(sections)}"
        "<footer>Made by fxprune. FLOPs are multiply-adds, as fvcore counts them.</footer></main></body></html>\n"
    )


# --- budget and result ------------------------------------------------------------------------------------------------


def _tiles(report: Report) -> str:
    flops = report.flops_target / max(report.flops.before or 1, 1)
    tiles = [
        tile("FLOPs", *_result(report.flops), report.flops.share, *_budget(flops)),
        tile(
            "Parameters",
            *_result(report.parameters),
            report.parameters.share,
            *_budget(report.params_target or 1.0),
        ),
    ]
    if report.memory_target is not None:
        tiles.append(_activations(report, report.memory_target))
    if report.latency is not None:
        first, second = report.latency
        now = milliseconds(second.seconds)
        if first is None:
            tiles.append(tile("Latency", now, "", None, *_budget(report.latency_target or 1.0)))
        else:
            share = second.seconds / first.seconds
            change = f"{milliseconds(first.seconds)} → {now}"
            tiles.append(tile("Speedup", speedup(share), change, share, *_budget(report.latency_target or 1.0)))
    else:
        before, after = report.memory
        left = None if before is None else after.weights / max(before.weights, 1)
        tiles.append(tile("Weights", bytes_of(after.weights), "in memory", left))
    certificate = report.certificate
    if certificate is None:
        tiles.append(tile("Certificate", "none", "needs the original, and a run of both models"))
    else:
        verdict = '<span class="good">holds</span>' if certificate.holds else '<span class="bad">FAILS</span>'
        tiles.append(tile("Certificate", verdict, f"{_compared(certificate)}, error {certificate.error:.1e}"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _activations(report: Report, target: float) -> str:
    """What exists at the same time beside the weights, with its budget."""
    before, after = (None if memory is None else memory.activations for memory in report.memory)
    if after is None:
        return tile("Activations", "not counted", "", None, *_budget(target))
    if not before:
        return tile("Activations", bytes_of(after), "", None, *_budget(target))
    share = after / before
    return tile("Activations", percent(share), f"{bytes_of(before)} → {bytes_of(after)}", share, *_budget(target))


def _budget(target: float) -> tuple[float, str] | tuple[()]:
    """The mark of a budget on the bar, and its text; nothing where there is no budget."""
    return (target, f"budget {percent(target)}") if target < 1 else ()


def _result(change: Change) -> tuple[str, str]:
    return (short(change.after) if change.share is None else percent(change.share)), arrow(change)


# --- layers -----------------------------------------------------------------------------------------------------------


def _kept(layers: Sequence[LayerFacts]) -> str:
    shown, bars = [], []
    for layer in layers:
        if layer.wide and layer.channels is not None:
            share = layer.channels.share
            title = f"{layer.name}: {arrow(layer.channels, 'all')} channels"
            shown.append(layer)
            bars.append((1.0, 1.0 if share is None else share, title))
    text = "<p>The fraction of output channels that is left of each convolution and linear layer.</p>"
    return text + legend("removed", "kept") + columns(bars, "Kept channels by layer") + _ends(shown)


def _flops(report: Report) -> str:
    costly = [layer for layer in report.layers if _most(layer.flops)]
    shown = [layer for layer in costly if _most(layer.flops) >= _SMALL * max(_most(report.flops), 1)]
    most = max((_most(layer.flops) for layer in shown), default=1)
    bars = [
        ((layer.flops.before or 0) / most, layer.flops.after / most, f"{layer.name}: {arrow(layer.flops)} FLOPs")
        for layer in shown
    ]
    text = f"The full height is {short(most)}."
    if len(costly) > len(shown):
        text += f" Not shown: {len(costly) - len(shown)} layers with less than {percent(_SMALL)} of the FLOPs each."
    unknown = sum(layer.flops.before is None for layer in shown)
    if unknown:
        text += f" Only the original can tell what {unknown} ops without weights cost before."
    chart = columns(bars, "FLOPs by layer before and after")
    return f"<p>{text}</p>{legend('before', 'after')}{chart}{_ends(shown)}"


def _most(flops: Change) -> int:
    return max(flops.before or 0, flops.after)


def _ends(layers: Sequence[LayerFacts]) -> str:
    """The names of the first and the last layer, below a chart."""
    if not layers:
        return ""
    return f'<div class="axis"><span>{escape(layers[0].name)}</span><span>{escape(layers[-1].name)}</span></div>'


def _layers(layers: Sequence[LayerFacts]) -> str:
    rows = []
    for layer in layers:
        share = None if layer.channels is None else layer.channels.share
        bar = "" if share is None else f'<div class="bar"><i style="width:{share * 100:.1f}%"></i></div>'
        channels = "" if layer.channels is None else arrow(layer.channels, "all")
        rows.append((cell(layer.name, layer.kind), number_cell(channels + bar), *_costs(layer)))
    heads = ("layer", "n:channels", "n:FLOPs", "n:parameters")
    return f'<details><summary>All {len(rows)} layers</summary><div class="tall">{table(heads, rows)}</div></details>'


# --- groups and graph -------------------------------------------------------------------------------------------------


def _groups(groups: Sequence[GroupFacts]) -> str:
    rows = []
    for number, group in enumerate(groups):
        dot = f'<span class="dot colour" style="{hue(number)}"></span>'
        note = f"only if needed: {group.last_resort}" if group.last_resort else ""
        repeats = f" {TIMES}{group.repeats}" if group.repeats > 1 else ""
        channels = number_cell(f"{arrow(group.channels, 'all')}{repeats}")
        rows.append((cell(group.name, note, dot), names_cell(group.layers), channels, *_costs(group)))
    text = (
        "<p>Channels that can only be pruned together, such as those of layers whose outputs are added. FLOPs and "
        "parameters are those of the layers that compute them.</p>"
    )
    heads = ("group", "computed by", "n:channels", "n:FLOPs", "n:parameters")
    return f'{text}<div class="tall">{table(heads, rows)}</div>'


def _frozen(frozen: Sequence[FrozenFacts]) -> str:
    rows = [
        (cell(each.reason), names_cell(each.layers), number_cell(count(each.channels)), *_costs(each))
        for each in frozen
    ]  # fmt: skip
    heads = ("why", "computed by", "n:channels", "n:FLOPs", "n:parameters")
    return f'<p>What cannot be pruned, and why.</p><div class="scroll">{table(heads, rows)}</div>'


def _costs(of: LayerFacts | GroupFacts | FrozenFacts) -> tuple[str, str]:
    return number_cell(arrow(of.flops)), number_cell(arrow(of.parameters))


def _graph(report: Report) -> str:
    rows = report.rows[:_MOST_ROWS]
    text = (
        "<p>The input is at the top, the output at the bottom. Squares are layers, dots are places where branches "
        "meet. The colour shows the group of the output channels; grey is for frozen channels, or none.</p>"
    )
    if len(rows) < len(report.rows):
        text += f"<p>The first {len(rows)} of {len(report.rows)} rows.</p>"
    return f'{text}<div class="tall">{graph(rows)}</div>'


# --- measured, certified, loaded --------------------------------------------------------------------------------------


def _measured(report: Report) -> str:
    rows = []
    for number, name in enumerate(("original", "pruned")):
        memory, latency = report.memory[number], None if report.latency is None else report.latency[number]
        if memory is None:
            continue
        time = ("not measured", "")
        if latency is not None:
            time = milliseconds(latency.seconds), milliseconds(latency.spread)
        peak = "not measured" if memory.peak is None else bytes_of(memory.peak)
        rows.append((f"<td>{name}</td>", *map(number_cell, (*time, bytes_of(memory.weights), peak))))
    how = "not measured"
    if report.latency is not None:
        latency = report.latency[1]
        how = escape(
            f"median of {latency.repeats} calls after {latency.warmup} warm-up calls, alternating between the models; "
            f"{latency.device}, {threads(latency.threads)}, {latency.dtype}, {latency.memory_format}"
        )
    heads = ("", "n:latency", "n:interquartile range", "n:weights", "n:peak of a forward pass")
    note = f"<p>Latency: {how}. The peak counts all tensors that exist at the same time, weights included.</p>"
    return f'{note}<div class="scroll">{table(heads, rows)}</div>'


def _compared(certificate: Certificate) -> str:
    return f"{certificate.of}, original rebuilt" if certificate.against == "rebuilt" else certificate.of


def _certificate(report: Report) -> str:
    certificate = report.certificate
    if certificate is None:
        call = "<code>fxprune.report(small, original=model)</code>"
        return f"<p>There is none: it needs the original, {call}, and a run of both models.</p>"
    verdict = (
        '<b class="good">holds</b>' if certificate.holds else '<b class="bad">does not hold: do not use this model</b>'
    )
    claim = "The pruned model computes what the original computes with the removed channels set to zero."
    if certificate.of == "structure":
        claim = (
            f"{_why_structure(report)} So this certifies the structure alone: with slices of the original's weights, "
            f"{claim[0].lower()}{claim[1:]}"
        )
    error = f"<b>{certificate.error:.1e}</b>"
    return (
        f"<p>The certificate {verdict}.</p><p>{claim} The largest difference of any output entry, relative to the "
        f"largest entry, in float64: {error}.</p>"
    )


def _why_structure(report: Report) -> str:
    """Why the outputs were not compared."""
    if report.certificate is not None and report.certificate.against == "rebuilt":
        return (
            "The original was not given. It was built again by its name, with random weights, and the weights of the "
            "pruned model were not compared."
        )
    if report.compensated:
        return "Compensation changed the weights after pruning."
    return (
        "The weights are not slices of those of the original that was given: either training changed them, or that "
        "original has other weights than the one that was pruned."
    )


def _load(report: Report, file: str) -> str:
    source = report.source
    if source is not None and source.spec.partition(":")[0] in ("timm", "torchvision"):
        lines = f"import fxprune\n\nsmall = fxprune.load({file!r})"
        how = "Loading builds the original again, by its name."
    else:
        lines = (
            "import fxprune\n\nmodel = ...  # the original, with any weights\n"
            f"small = fxprune.load({file!r}, original=model)"
        )
        how = "Loading needs the original's code."
    result = "\n".join(f"{name:<12} {value}" for name, value in facts(report))
    return (
        f"<p><code>fxprune.save(small, ...)</code> writes the file. {how}</p>{code(lines)}"
        f"<p>An ONNX file runs without fxprune and without the original's code:</p>"
        f"{code(f'fxprune export {file} -o small.onnx')}"
        f"<details><summary>The result as text</summary>{code(result)}</details>"
    )

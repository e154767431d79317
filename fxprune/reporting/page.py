"""A report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.reporting.charts import columns, graph, hue
from fxprune.reporting.facts import Change, LayerFacts
from fxprune.reporting.numbers import TIMES, arrow, bytes_of, count, milliseconds, percent, short
from fxprune.reporting.text import facts

if TYPE_CHECKING:
    from fxprune.latency.measure import Latency
    from fxprune.reporting.report import Report

__all__ = ["page"]

# Rows of the drawn graph; more are no picture any more, and slow to show.
_MOST_ROWS = 3000
_SMALL = 1e-3


def page(report: Report, file: str) -> str:
    """The page; `file` is the name of the pruned model's file."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    wide = [layer for layer in report.layers if layer.wide and layer.channels is not None]
    sections = (
        _tiles(report),
        _section("Kept channels by layer", _kept(wide)),
        _section("FLOPs by layer", _flops(report)),
        _section("Groups", _groups(report)),
        _section("Graph", _graph(report)),
        _section("Frozen channels", _frozen(report)) if report.frozen else "",
        _section("Layers", _layers(report.layers)),
        _section("Latency and memory", _measured(report)),
        _section("Certificate", _certificate(report)),
        _section("Load the file", _load(report, file)),
    )
    title = escape(f"{report.model}, pruned")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>\n{style}</style></head><body><main>"
        f"<h1>{escape(report.model)}, pruned</h1><p>Input {escape(report.inputs)}</p>{''.join(sections)}"
        "<footer>Made by fxprune. FLOPs are multiply-adds, as fvcore counts them.</footer></main></body></html>\n"
    )


def _section(name: str, content: str) -> str:
    return f"<section><h2>{name}</h2>{content}</section>"


# --- budget and result ------------------------------------------------------------------------------------------------


def _tiles(report: Report) -> str:
    flops = report.flops_target / max(report.flops.before or 1, 1)
    tiles = [
        _tile("FLOPs", *_result(report.flops), report.flops.share, *_budget(flops)),
        _tile("Parameters", *_result(report.parameters), report.parameters.share),
    ]
    if report.latency is not None:
        first, second = report.latency
        share = None if first is None else second.seconds / first.seconds
        now = milliseconds(second.seconds)
        before = "" if first is None else f"{milliseconds(first.seconds)} → {now}"
        big = now if first is None else f"{first.seconds / second.seconds:.2f}{TIMES} as fast"
        tiles.append(_tile("Latency", big, before, share, *_budget(report.latency_target or 1.0)))
    else:
        before_memory, memory = report.memory
        share = None if before_memory is None else memory.weights / max(before_memory.weights, 1)
        tiles.append(_tile("Weights", bytes_of(memory.weights), "in memory", share))
    certificate = report.certificate
    if certificate is None:
        tiles.append(_tile("Certificate", "none", "give the original, and run it"))
    else:
        verdict = '<span class="good">holds</span>' if certificate.holds else '<span class="bad">FAILS</span>'
        tiles.append(_tile("Certificate", verdict, f"{certificate.of}, error {certificate.error:.1e}"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _budget(target: float) -> tuple[float, str] | tuple[()]:
    """Where the mark of a budget is, and what is said of it; nothing where there is none."""
    return (target, f"budget {percent(target)}") if target < 1 else ()


def _result(change: Change) -> tuple[str, str]:
    return (short(change.after) if change.share is None else percent(change.share)), arrow(change)


def _tile(
    name: str, big: str, more: str, share: float | None = None, mark: float | None = None, extra: str = ""
) -> str:
    meter = ""
    if share is not None:
        tick = "" if mark is None else f'<b style="left:{min(mark, 1) * 100:.2f}%"></b>'
        meter = f'<div class="meter"><i style="width:{min(share, 1) * 100:.2f}%"></i>{tick}</div>'
    more = f"{more}; {extra}" if extra else more
    shown = f'<div class="name">{name}</div><div class="big">{big}</div>{meter}<div class="more">{more}</div>'
    return f'<div class="tile">{shown}</div>'


# --- layers -----------------------------------------------------------------------------------------------------------


def _kept(wide: Sequence[LayerFacts]) -> str:
    bars = []
    for layer in wide:
        assert layer.channels is not None
        share = layer.channels.share
        bars.append((1.0, 1.0 if share is None else share, f"{layer.name}: {arrow(layer.channels, 'all')} channels"))
    text = "<p>Output channels that are left, of each convolution and linear layer. Full height is all of them.</p>"
    return text + _key("removed", "kept") + columns(bars, "Kept channels by layer") + _ends(wide)


def _flops(report: Report) -> str:
    costly = [layer for layer in report.layers if max(layer.flops.before or 0, layer.flops.after)]
    whole = max(report.flops.before or 0, report.flops.after, 1)
    shown = [layer for layer in costly if max(layer.flops.before or 0, layer.flops.after) >= _SMALL * whole]
    most = max((max(layer.flops.before or 0, layer.flops.after) for layer in shown), default=1)
    bars = [
        ((layer.flops.before or 0) / most, layer.flops.after / most, f"{layer.name}: {arrow(layer.flops)} FLOPs")
        for layer in shown
    ]
    rest = len(costly) - len(shown)
    hidden = f" Left out: layers of less than {percent(_SMALL)} of the FLOPs each ({rest})." if rest else ""
    unknown = sum(layer.flops.before is None for layer in shown)
    missing = f" What {unknown} ops without weights cost before is not known without the original." if unknown else ""
    text = f"<p>Full height is {short(most)}.{hidden}{missing}</p>"
    return text + _key("before", "after") + columns(bars, "FLOPs by layer before and after") + _ends(shown)


def _key(before: str, after: str) -> str:
    return (
        f'<div class="key"><span><i style="background:var(--before)"></i>{before}</span>'
        f'<span><i style="background:var(--after)"></i>{after}</span></div>'
    )


def _ends(layers: Sequence[LayerFacts]) -> str:
    if not layers:
        return ""
    return f'<div class="axis"><span>{escape(layers[0].name)}</span><span>{escape(layers[-1].name)}</span></div>'


def _layers(layers: Sequence[LayerFacts]) -> str:
    rows = []
    for layer in layers:
        share = None if layer.channels is None else layer.channels.share
        bar = "" if share is None else f'<div class="bar"><i style="width:{share * 100:.1f}%"></i></div>'
        channels = "" if layer.channels is None else arrow(layer.channels, "all")
        rows.append(
            (
                f'<td class="wrap">{escape(layer.name)}<br><span class="soft">{escape(layer.kind)}</span></td>',
                f'<td class="n">{channels}{bar}</td>',
                f'<td class="n">{arrow(layer.flops)}</td>',
                f'<td class="n">{arrow(layer.parameters)}</td>',
            )
        )
    heads = ("layer", "n:channels", "n:FLOPs", "n:parameters")
    table = f'<div class="tall">{_table(heads, rows)}</div>'
    return f"<details><summary>All {len(rows)} layers</summary>{table}</details>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(
        f'<th class="n">{name.removeprefix("n:")}</th>' if name.startswith("n:") else f"<th>{name}</th>"
        for name in heads
    )
    names = [name.removeprefix("n:") for name in heads]
    body = "".join(f"<tr>{''.join(map(_named, row, names))}</tr>" for row in rows)
    return f'<table class="stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _named(cell: str, name: str) -> str:
    """On narrow screens, where a row is a block, each number says what it is."""
    return cell.replace('<td class="n">', f'<td class="n" data-name="{name}">')


# --- groups and graph -------------------------------------------------------------------------------------------------


def _groups(report: Report) -> str:
    rows = []
    for number, group in enumerate(report.groups):
        dot = f'<span class="dot colour" style="{hue(number)}"></span>'
        note = f'<br><span class="soft">only if needed: {escape(group.last_resort)}</span>' if group.last_resort else ""
        repeats = f" {TIMES}{group.repeats}" if group.repeats > 1 else ""
        rows.append(
            (
                f'<td class="wrap">{dot}{escape(group.name)}{note}</td>',
                f'<td class="wrap soft">{_names(group.layers)}</td>',
                f'<td class="n">{arrow(group.channels, "all")}{repeats}</td>',
                f'<td class="n">{arrow(group.flops)}</td>',
                f'<td class="n">{arrow(group.parameters)}</td>',
            )
        )
    text = (
        "<p>Channels that can only go together: those of layers whose outputs are added, for example. FLOPs and "
        "parameters are those of the layers that write them.</p>"
    )
    heads = ("group", "written by", "n:channels", "n:FLOPs", "n:parameters")
    return f'{text}<div class="tall">{_table(heads, rows)}</div>'


def _frozen(report: Report) -> str:
    rows = [
        (
            f'<td class="wrap">{escape(each.reason)}</td>',
            f'<td class="wrap soft">{_names(each.layers)}</td>',
            f'<td class="n">{count(each.channels)}</td>',
            f'<td class="n">{arrow(each.flops)}</td>',
            f'<td class="n">{arrow(each.parameters)}</td>',
        )
        for each in report.frozen
    ]
    heads = ("why", "written by", "n:channels", "n:FLOPs", "n:parameters")
    return f'<p>What cannot be pruned, and why.</p><div class="scroll">{_table(heads, rows)}</div>'


def _names(names: Sequence[str], most: int = 4) -> str:
    if len(names) <= most:
        return escape(", ".join(names)) or "-"
    rest = escape(", ".join(names))
    return f'<span title="{rest}">{escape(", ".join(names[: most - 1]))} and {len(names) - most + 1} more</span>'


def _graph(report: Report) -> str:
    rows = report.rows[:_MOST_ROWS]
    text = (
        "<p>From the input at the top to the output at the bottom. Squares are layers, dots are where branches meet; "
        "the colour is that of the group of the output channels, grey is frozen or none.</p>"
    )
    if len(rows) < len(report.rows):
        text += f"<p>The first {len(rows)} of {len(report.rows)} rows.</p>"
    return f'{text}<div class="tall">{graph(rows)}</div>'


# --- measured, certified, loaded --------------------------------------------------------------------------------------


def _measured(report: Report) -> str:
    rows = []
    for name, number in (("original", 0), ("pruned", 1)):
        memory = report.memory[number]
        timed: Latency | None = None if report.latency is None else report.latency[number]
        if memory is None:
            continue
        time = "not measured" if timed is None else milliseconds(timed.seconds)
        spread = "" if timed is None else milliseconds(timed.spread)
        peak = "not measured" if memory.peak is None else bytes_of(memory.peak)
        cells = (time, spread, bytes_of(memory.weights), peak)
        rows.append((f"<td>{name}</td>", *(f'<td class="n">{cell}</td>' for cell in cells)))
    how = "not measured"
    if report.latency is not None:
        timed = report.latency[1]
        how = escape(
            f"median of {timed.repeats} calls after {timed.warmup} untimed ones, the models in turns; {timed.device}, "
            f"{timed.threads} thread{'s' if timed.threads != 1 else ''}, {timed.dtype}, {timed.memory_format}"
        )
    heads = ("", "n:latency", "n:interquartile range", "n:weights", "n:peak of a forward pass")
    note = f"<p>Latency: {how}. The peak counts all tensors that are alive at a time, weights included.</p>"
    return f'{note}<div class="scroll">{_table(heads, rows)}</div>'


def _certificate(report: Report) -> str:
    certificate = report.certificate
    if certificate is None:
        return (
            "<p>Not made: it takes the original, <code>fxprune.report(small, original)</code>, and a run of both.</p>"
        )
    verdict = (
        '<b class="good">holds</b>' if certificate.holds else '<b class="bad">does not hold: do not use this model</b>'
    )
    how = (
        "The weights were changed after the cut (by compensation or training), so the structure is certified: with "
        "slices of the original's weights in their place, "
        if certificate.of == "structure"
        else ""
    )
    text = (
        f"{how}the pruned model computes what the original computes with the removed channels set to zero. The largest "
        f"difference of any output entry, relative to the largest entry, in float64: "
    )
    return f"<p>The certificate {verdict}.</p><p>{text[0].upper()}{text[1:]}<b>{certificate.error:.1e}</b>.</p>"


def _load(report: Report, file: str) -> str:
    source = report.source
    by_name = source is not None and source.spec.partition(":")[0] in ("timm", "torchvision")
    name = repr(file)
    if by_name:
        code = f"import fxprune\n\nsmall = fxprune.load({name})"
        text = "Written by <code>fxprune.save(small, ...)</code>. Loading builds the original again, by its name."
    else:
        code = f"import fxprune\n\nmodel = ...  # the original, with any weights\nsmall = fxprune.load({name}, model)"
        text = "Written by <code>fxprune.save(small, ...)</code>. Loading takes the original's code."
    shell = f"fxprune export {file} -o small.onnx"
    facts_text = "\n".join(f"{name:<12} {value}" for name, value in facts(report))
    return (
        f"<p>{text}</p><pre><code>{escape(code)}</code></pre><p>As ONNX, without any of this:</p>"
        f"<pre><code>{escape(shell)}</code></pre><details><summary>The result as text</summary>"
        f"<pre><code>{escape(facts_text)}</code></pre></details>"
    )

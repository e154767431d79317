"""Runs a check over many models, each in a process of its own; a later run continues from the results on disk."""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import math
import multiprocessing
import resource
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from shared import append_row, read_rows, settle

import fxprune

__all__ = ["Check", "Result", "add_options", "check_all", "read", "show_one", "table"]

Result = dict[str, Any]
# Called with the name of a model, `say` (which is called with the name of each stage) and `reraise`.
Check = Callable[..., Result]


def add_options(parser: argparse.ArgumentParser, output: str, seconds: float, gib: float) -> None:
    """The options of a script that checks many models."""
    parser.add_argument("--one", metavar="MODEL", help="check one model in this process and show the traceback")
    parser.add_argument("--output", type=Path, default=Path(output), help="file of JSON lines to append to")
    parser.add_argument(
        "--any-source", action="store_true", help="keep results from other versions of fxprune's source"
    )
    parser.add_argument("--workers", type=int, default=1, help="models at a time, one core each (default 1)")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"CPU time limit of one model (default {seconds:.0f})"
    )
    parser.add_argument("--gib", type=float, default=gib, help=f"memory limit of one model in GiB (default {gib:.0f})")


def show_one(check: Check, spec: str) -> None:
    """Check one model in this process; the first failure raises."""
    print(json.dumps(check(spec, say=functools.partial(print, "...", flush=True), reraise=True), indent=2))


def check_all(
    specs: Sequence[str], check: Check, options: argparse.Namespace, libraries: Iterable[str]
) -> list[Result]:
    """Check the models that have no result of fxprune's present source yet; returns the results of all."""
    settle()
    for library in libraries:
        importlib.import_module(library)  # once, before the processes are forked
    source, known = _source_of_fxprune(), read(options.output)
    current = {spec for spec, result in known.items() if options.any_source or result["source"] == source}
    _run([spec for spec in specs if spec not in current], check, source, options)
    known = read(options.output)
    return [known[spec] for spec in specs]


def read(output: Path) -> dict[str, Result]:
    """The last result of every model."""
    return {result["model"]: result for result in read_rows(output)}


def _run(specs: Sequence[str], check: Check, source: str, options: argparse.Namespace) -> None:
    """Check the models in forked processes, at most `options.workers` at a time; write a line for each."""
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(specs))
    running: dict[Connection, tuple[str, Any, float, str]] = {}
    # A process may wait for a processor much longer than it computes.
    most = 20 * options.seconds
    done = 0

    def finish(connection: Connection, result: Result) -> None:
        nonlocal done
        running.pop(connection)[1].join()
        done += 1
        append_row(options.output, {**result, "source": source})
        _print(result, f"[{done}/{len(specs)}]")

    while waiting or running:
        while waiting and len(running) < options.workers:
            spec = waiting.pop()
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(spec, check, there, options.gib, options.seconds))
            process.start()
            there.close()
            running[here] = (spec, process, time.monotonic() + most, "start")
        for connection in wait(list(running), timeout=1.0):
            assert isinstance(connection, Connection)
            spec, process, deadline, stage = running[connection]
            try:
                message = connection.recv()
            except EOFError:
                process.join()
                late = process.exitcode == -signal.SIGXCPU
                ended = f"the process ended with exit code {process.exitcode}"
                message = _lost(spec, stage, f"took over {options.seconds:.0f} s" if late else ended)
            if isinstance(message, str):
                running[connection] = (spec, process, deadline, message)
            else:
                finish(connection, message)
        for connection, (spec, process, deadline, stage) in list(running.items()):
            if time.monotonic() > deadline:
                process.kill()
                finish(connection, _lost(spec, stage, f"waited over {most:.0f} s"))


def _child(spec: str, check: Check, connection: Connection, gib: float, seconds: float) -> None:
    limit = int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
    # A limit on addresses would not do: torch's libraries map many GiB that they never touch.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send(check(spec, say=connection.send))


def _lost(spec: str, stage: str, reason: str) -> Result:
    return {"model": spec, "ok": False, "failed": {stage: reason}}


def _print(result: Result, counter: str) -> None:
    failed = "; ".join(f"{name}: {reason}" for name, reason in result["failed"].items())
    seconds = result.get("prune_seconds", float("nan"))
    print(f"{counter} {result['model']:<46} {'ok' if result['ok'] else 'FAILED ' + failed} ({seconds} s)", flush=True)


def table(results: Sequence[Result]) -> str:
    """The results as text: failures with their reasons, then the models that pass, then the counts."""
    failures = [result for result in results if not result["ok"]]
    passes = [result for result in results if result["ok"]]
    lines = [f"{'failed':<46} check: reason"] if failures else []
    for result in sorted(failures, key=lambda result: next(iter(result["failed"].items()))):
        for position, (name, reason) in enumerate(result["failed"].items()):
            lines.append(f"{'' if position else result['model']:<46} {name}: {reason}")
        lines.extend(f"{'':<46}   frozen: {why} ({n})" for why, n in list(result.get("frozen", {}).items())[:3])
    header = (
        f"{'passed':<46} {'MFLOPs':>10} {'ratio':>7} {'error':>8} "
        f"{'groups':>6} {'channels':>8} {'frozen':>7} {'CPU s':>6}"
    )
    lines += ["", header]
    for result in passes:
        lines.append(
            f"{result['model']:<46} {result['flops_before'] / 1e6:>10.1f} {result['ratio']:>7.4f} "
            f"{result.get('error', float('nan')):>8.1e} {result['groups']:>6} {result['channels']:>8} "
            f"{sum(result['frozen'].values()):>7} {result['prune_seconds']:>6.2f}"
        )
    checks = Counter(name for result in failures for name in result["failed"])
    seconds = [result["prune_seconds"] for result in results if "prune_seconds" in result]
    lines += ["", f"passed {len(passes)} of {len(results)}"]
    if checks:
        lines.append("failed checks: " + ", ".join(f"{name} {count}" for name, count in checks.most_common()))
    if seconds:
        lines.append(f"prune, CPU seconds: median {statistics.median(seconds):.2f}, most {max(seconds):.2f}")
    return "\n".join(lines)


def _source_of_fxprune() -> str:
    files = sorted(Path(fxprune.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]

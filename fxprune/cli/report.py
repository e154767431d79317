"""`fxprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fxprune.cli import common
from fxprune.cli.models import load_original, load_pruned
from fxprune.reporting.report import report as make_report

__all__ = ["report"]


def report(
    file: common.File,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="write the report as a web page, a .html file")
    ] = None,
    model: common.OriginalModel = None, arguments: common.Arguments = None,
    weights: common.Weights = None, pretrained: common.Pretrained = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="whether to run the models: certificate, latency, memory")
    ] = True,
    as_json: common.AsJson = False, debug: common.Debug = False,
) -> None:  # fmt: skip
    """Report what was pruned where, what the model costs now, and whether it is correct."""
    if output is not None:
        common.check_output(output, ".html")
    stages = common.Stages()
    with stages("load"):
        pruned = load_pruned(file, model, arguments)
        original = load_original(pruned, model, arguments, weights, pretrained)
    with stages("report"):
        made = make_report(pruned, original=original, measure=measure)
    if output is not None:
        made.to_html(output, file=file.name)
    if as_json:
        common.print_json(made.to_dict())
        return
    console = Console()
    console.print(made)
    if output is not None:
        console.print(f"saved in {output}", highlight=False, soft_wrap=True)

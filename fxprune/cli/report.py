"""`fxprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fxprune.cli.common import (
    Arguments,
    AsJson,
    Debug,
    File,
    OriginalModel,
    Pretrained,
    Stages,
    Weights,
    check_output,
    print_json,
    running,
)
from fxprune.cli.models import load_original, load_pruned
from fxprune.reporting.report import report as make_report

__all__ = ["report"]


def report(
    file: File,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="write the report as a web page, a .html file")
    ] = None,
    model: OriginalModel = None,
    arguments: Arguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure", help="whether to run the models for the certificate, latency and memory"
        ),
    ] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Report what was pruned where, what the model costs now, and whether it is correct."""
    with running(debug):
        if output is not None:
            check_output(output, ".html")
        stages = Stages()
        with stages("load"):
            pruned = load_pruned(file, model, arguments)
            original = load_original(pruned, model, arguments, weights, pretrained)
        with stages("report"):
            made = make_report(pruned, original=original, measure=measure)
        if output is not None:
            made.to_html(output, file=file.name)
        if as_json:
            print_json(made.to_dict())
            return
        console = Console()
        console.print(made)
        if output is not None:
            console.print(f"saved in {output}", highlight=False, soft_wrap=True)

"""`fxprune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import common
from fxprune.cli.models import load_pruned
from fxprune.files.exporting import export as export_model

__all__ = ["export"]


def export(
    file: common.File,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="a .onnx or .pt2 file")],
    model: common.OriginalModel = None, arguments: common.Arguments = None,
    dynamic_batch: Annotated[
        bool,
        typer.Option("--dynamic-batch/--static-batch", help="whether the exported model takes any number of samples"),
    ] = True,
    as_json: common.AsJson = False, debug: common.Debug = False,
) -> None:  # fmt: skip
    """Export a pruned model to ONNX or to a torch.export archive, which run without the model's code.

    The file is written only if the exported model gives the outputs of the pruned model.
    """
    common.check_output(output, ".onnx", ".pt2")
    stages = common.Stages()
    with stages("load"):
        pruned = load_pruned(file, model, arguments)
    with stages("export"):
        error = export_model(pruned, output, dynamic_batch=dynamic_batch)
    if as_json:
        common.print_json({"file": str(file), "output": str(output), "error": error})
    else:
        typer.echo(f"saved in {output}; largest relative difference from the outputs of the model: {error:.1e}")

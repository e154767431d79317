"""`fxprune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.common import Arguments, AsJson, Debug, File, OriginalModel, Stages, check_output, print_json, running
from fxprune.cli.models import load_pruned
from fxprune.files.exporting import export as export_model

__all__ = ["export"]


def export(
    file: File,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="a .onnx or .pt2 file")],
    model: OriginalModel = None,
    arguments: Arguments = None,
    dynamic_batch: Annotated[
        bool,
        typer.Option("--dynamic-batch/--static-batch", help="whether the exported model takes any number of samples"),
    ] = True,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Export a pruned model to ONNX or to a torch.export archive, which run without the model's code.

    The file is written only if the exported model gives the outputs of the pruned model.
    """
    with running(debug):
        check_output(output, ".onnx", ".pt2")
        stages = Stages()
        with stages("load"):
            pruned = load_pruned(file, model, arguments)
        with stages("export"):
            error = export_model(pruned, output, dynamic_batch=dynamic_batch)
        if as_json:
            print_json({"file": str(file), "output": str(output), "error": error})
        else:
            typer.echo(f"saved in {output}; largest relative difference from the outputs of the model: {error:.1e}")

"""`fxprune verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from fxprune.cli.common import (
    Arguments,
    AsJson,
    Debug,
    File,
    OriginalModel,
    Pretrained,
    Stages,
    Weights,
    print_json,
    running,
)
from fxprune.cli.models import load_original, load_pruned
from fxprune.errors import FxpruneError
from fxprune.reporting.measuring import certify

__all__ = ["verify"]


def verify(
    file: File,
    model: OriginalModel = None,
    arguments: Arguments = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="the weights, too, must be those of the original: cut, and not changed since"),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare a pruned model with its original in which the removed channels are zero.

    Weights that were changed since the cut, by compensation or training, and an original without its weights, leave the
    structure to certify: that of the pruned model, with slices of the original's weights. The exit code is 1 if the
    certificate does not hold.
    """
    with running(debug):
        stages = Stages()
        with stages("load"):
            pruned = load_pruned(file, model, arguments)
            original = load_original(pruned, model, arguments, weights, pretrained)
        if original is None:
            raise FxpruneError(f"{str(file)!r} does not tell its original: give --model")
        with stages("verify"):
            certificate = certify(original, pruned)
        holds = certificate.holds and (certificate.of == "outputs" or not exact)
        if as_json:
            print_json({"file": str(file), "holds": holds, "of": certificate.of, "error": certificate.error})
        elif holds:
            typer.echo(f"holds: {certificate.of}, largest relative difference {certificate.error:.1e}")
        if not holds:
            why = "the weights were changed since the cut" if certificate.holds else "another model, or damaged weights"
            typer.echo(f"fxprune: {file} is not its zero-masked original ({certificate.of} compared, largest relative "
                       f"difference {certificate.error:.1e}): {why}", err=True)  # fmt: skip
            raise typer.Exit(1)

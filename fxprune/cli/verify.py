"""`fxprune verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from fxprune.cli import common
from fxprune.cli.models import load_original, load_pruned
from fxprune.errors import FxpruneError
from fxprune.reporting.measuring import certify

__all__ = ["verify"]


def verify(
    file: common.File,
    exact: Annotated[
        bool, typer.Option("--exact", help="fail if the weights are not slices of the original's any more")
    ] = False,
    model: common.OriginalModel = None, arguments: common.Arguments = None,
    weights: common.Weights = None, pretrained: common.Pretrained = False,
    as_json: common.AsJson = False, debug: common.Debug = False,
) -> None:  # fmt: skip
    """Check that a pruned model equals its original with the removed channels set to zero.

    The outputs are compared if the weights are still slices of the original's. After compensation or training, or
    without the original's weights, only the structure is: the pruned model with slices of the original's weights in it.
    The exit code is 1 if the check fails.
    """
    stages = common.Stages()
    with stages("load"):
        pruned = load_pruned(file, model, arguments)
        original = load_original(pruned, model, arguments, weights, pretrained)
    if original is None:
        raise FxpruneError(f"{str(file)!r} does not say what its original is: give --model")
    with stages("verify"):
        certificate = certify(original, pruned)
    holds = certificate.holds and (certificate.of == "outputs" or not exact)
    if as_json:
        common.print_json({"file": str(file), "holds": holds, "of": certificate.of, "error": certificate.error})
    elif holds:
        typer.echo(f"verified: {certificate.of}, largest relative difference {certificate.error:.1e}")
    if not holds:
        why = (
            "its weights are not slices of the original's" if certificate.holds else "another model, or damaged weights"
        )
        typer.echo(
            f"fxprune: {file} does not equal its zero-masked original: {why} (compared: {certificate.of}, largest "
            f"relative difference {certificate.error:.1e})",
            err=True,
        )
        raise typer.Exit(1)

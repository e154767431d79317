"""Shared by the verbs: options, progress, errors and exit codes."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.progress import Progress, bars, silent

__all__ = [
    "Arguments",
    "AsJson",
    "Debug",
    "File",
    "Input",
    "Model",
    "OriginalModel",
    "Output",
    "Pretrained",
    "Seed",
    "Stages",
    "Weights",
    "check_output",
    "print_json",
    "running",
]

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="timm:NAME, torchvision:NAME or package.module:callable", show_default=False),
]
File = Annotated[
    Path, typer.Argument(metavar="FILE", help="a file that `fxprune prune` or fxprune.save wrote", show_default=False)
]
OriginalModel = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="the original; needed unless it is from timm or torchvision"),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", metavar="KEY=VALUE", help="argument to build the model with, such as num_classes=10; repeatable"
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="SHAPE", help="shape of an input, such as 1,3,224,224; repeatable (default: the model's own)"
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="weights of the original: a state dict in .safetensors, .pth or .pt")
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="use trained weights from timm or torchvision (downloads them)")
]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="file for the result, a .safetensors file")
]
Seed = Annotated[int, typer.Option(help="random seed")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON and nothing else")]
# Read by `fxprune.cli.usage.Verb`.
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of errors")]

_INTERRUPTED = 130


@contextmanager
def running(debug: bool) -> Iterator[None]:
    """Turn an exception into one line and an exit code: 1 for a failure, 130 for an interrupt."""
    try:
        with warnings.catch_warnings():
            if not debug:
                # Warnings of libraries are for those who write code.
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", FxpruneWarning)
                warnings.showwarning = lambda message, *_, **__: typer.echo(f"note: {message}", err=True)
            yield
    except (typer.Exit, typer.BadParameter, typer.Abort):
        raise
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("fxprune: interrupted; no file was left incomplete", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        if not isinstance(error, FxpruneError):
            text = f"{type(error).__name__}: {text} (an unexpected error; --debug shows where)"
        typer.echo(f"fxprune: {text}", err=True)
        raise typer.Exit(1) from None


class Stages:
    """Shows the progress of stages if there is a terminal, and keeps the time that each took.

    It writes to the error stream, so that the output has only the result.

    Attributes:
        seconds: the time of each stage, by name.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[Progress]:
        """Within it, a stage runs; the function yielded shows a progress bar for each of its parts."""
        began = time.perf_counter()
        if self.console.is_terminal:
            with bars(self.console, name) as show:
                yield show
        else:
            yield silent
        self.seconds[name] = round(time.perf_counter() - began, 3)


def check_output(path: Path, *suffixes: str) -> None:
    """Check before the work that its result can be written to a path.

    Raises:
        typer.BadParameter: the name ends in none of the suffixes.
        FxpruneError: no file can be written there.
    """
    if path.suffix not in suffixes:
        raise typer.BadParameter(f"{str(path)!r} must end in {' or '.join(suffixes)}", param_hint="--output")
    if path.is_dir():
        raise FxpruneError(f"--output: {path} is a folder; give a file name")
    folder = next(parent for parent in (path.parent, *path.parent.parents, Path("/")) if parent.exists())
    if not folder.is_dir():
        raise FxpruneError(f"--output: {path} cannot be written: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK):
        raise FxpruneError(f"--output: {path} cannot be written: you have no permission to write in {folder}")


def print_json(value: Mapping[str, Any]) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(value, indent=2))

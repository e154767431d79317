"""The `fxprune` command and its verbs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from fxprune.cli.export import export
from fxprune.cli.finetune import finetune
from fxprune.cli.inspect import inspect
from fxprune.cli.prune import prune
from fxprune.cli.report import report
from fxprune.cli.usage import PlainGroup, Verb
from fxprune.cli.verify import verify

__all__ = ["EXAMPLES", "app", "main"]

EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    inspect: ("fxprune inspect timm:densenet121",),
    prune: (
        "fxprune prune timm:resnet50 --pretrained --flops 0.5 -o small.safetensors",
        "fxprune prune torchvision:resnet18 --weights trained.pth --data photos/ -o small.safetensors",
        "fxprune prune mypackage.nets:build --arg width=64 --input 1,3,32,32 -o small.safetensors",
    ),
    finetune: (
        "fxprune finetune small.safetensors --data imagefolder:train --eval-data imagefolder:val -o tuned.safetensors",
        "fxprune finetune small.safetensors --data torchvision:CIFAR10:data --epochs 5 -o tuned.safetensors",
    ),
    verify: ("fxprune verify small.safetensors", "fxprune verify small.safetensors --weights trained.pth"),
    report: ("fxprune report small.safetensors", "fxprune report small.safetensors -o report.html"),
    export: ("fxprune export small.safetensors -o small.onnx",),
}

app = typer.Typer(
    name="fxprune",
    help="Structured pruning of PyTorch models to a budget of FLOPs or time.",
    epilog="To start: fxprune prune timm:resnet50 --pretrained --flops 0.5 -o small.safetensors",
    cls=PlainGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _verb, _lines in EXAMPLES.items():
    app.command(cls=Verb, epilog="\n\n".join(("Examples:" if len(_lines) > 1 else "Example:", *_lines)))(_verb)


def main() -> None:
    """Entry point of the `fxprune` command."""
    app()


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    if version:
        typer.echo(f"fxprune {metadata.version('fxprune')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())

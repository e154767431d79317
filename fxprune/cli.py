"""The command line: `fxprune prune MODEL --flops 0.5 -o DIR` and `fxprune inspect MODEL`."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.models import example_inputs, load_model
from fxprune.rewriting import alive_channels

__all__ = ["app", "main"]

app = typer.Typer(
    name="fxprune",
    help="Structured pruning of PyTorch models to a FLOPs budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="timm:NAME, torchvision:NAME or package.module:callable")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SHAPE", help="shape of an input, such as 1,3,224,224 (default: the model's own)"),
]
Weights = Annotated[Path | None, typer.Option(help="state dict to load: .safetensors, .pth or .pt")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="trained weights of timm or torchvision (downloads)")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]


def main() -> None:
    """Entry point of the `fxprune` command."""
    app()


@app.callback(invoke_without_command=True)
def _global(
    version: Annotated[bool, typer.Option("--version", help="show the version and exit")] = False,
) -> None:
    if version:
        typer.echo(f"fxprune {_version('fxprune')}")
        raise typer.Exit


@app.command()
def inspect(
    model: Model,
    weights: Weights = None,
    input_shape: Input = None,
    debug: Debug = False,
) -> None:
    """Show a model's channels: which go together, and which cannot be pruned and why."""
    with _errors(debug):
        stages = _Stages()
        network, inputs = _load(stages, model, weights, False, input_shape)
        with stages("trace"):
            traced = fxprune.trace(network, inputs)
        with stages("analyze"):
            graph = fxprune.analyze(traced)
        typer.echo(str(graph))


@app.command()
def prune(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="where the result goes")],
    flops: Annotated[float, typer.Option(help="budget: a fraction of the FLOPs in (0, 1], or a count above 1")] = 0.5,
    round_to: Annotated[int, typer.Option(min=1, help="keep channels in multiples of this")] = 1,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="module name or glob that is not pruned; repeatable")
    ] = None,
    method: Annotated[str, typer.Option(help="how channels are scored")] = "relevance",
    weights: Weights = None,
    pretrained: Pretrained = False,
    input_shape: Input = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
    debug: Debug = False,
) -> None:
    """Prune a model to a FLOPs budget and save it.

    DIR receives model.safetensors (the smaller state dict), plan.json (what was kept of the original, and where it
    came from) and model.py (the forward pass as Python).
    """
    with _errors(debug):
        _make_directory(output)
        stages = _Stages()
        network, inputs = _load(stages, model, weights, pretrained, input_shape)
        with stages("trace"):
            traced = fxprune.trace(network, inputs)
        with stages("analyze"):
            graph = fxprune.analyze(traced)
        with stages("plan"):
            scores = fxprune.scores(graph, method)
            plan = fxprune.make_plan(graph, scores, flops=flops, round_to=round_to, ignore=tuple(ignore or ()))
        with stages("rewrite"):
            pruned = fxprune.rewrite(graph, plan)
        with stages("verify"):
            error = fxprune.verify(network, pruned)
        summary: dict[str, Any] = {
            "model": model,
            "weights": str(weights) if weights else "pretrained" if pretrained else None,
            "method": method,
            "flops_before": int(plan.flops_before),
            "flops_target": int(plan.flops_target),
            "flops_after": int(plan.flops),
            "parameters_before": _num_parameters(network),
            "parameters_after": _num_parameters(pruned),
            "error": float(error),
        }
        alive = alive_channels(graph, plan)
        groups = [
            {
                "name": group.name,
                "layers": len(group.dimensions),
                "before": len(group.channels),
                "after": int(alive[group.channels].sum()),
            }
            for group in graph.groups
        ]
        with stages("save"):
            _save(output, pruned, {**summary, "versions": _versions(model), "kept": plan.kept})
        summary["seconds"] = {name: round(value, 3) for name, value in stages.seconds.items()}
        if as_json:
            typer.echo(json.dumps({**summary, "output": str(output), "groups": groups}, indent=2))
        else:
            _print_summary(summary, groups, output)
        if not weights and not pretrained and model.partition(":")[0] in ("timm", "torchvision"):
            typer.echo("note: these are random weights; give --weights FILE or --pretrained", err=True)


class _Stages:
    """Shows which stage is at work (on a terminal only) and keeps how long each took."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        with self.console.status(f"{name} ..."):
            yield
        self.seconds[name] = time.perf_counter() - began


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
    try:
        yield
    except FxpruneError as error:
        if debug:
            raise
        typer.echo(f"fxprune: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


def _load(
    stages: _Stages, spec: str, weights: Path | None, pretrained: bool, shapes: list[str] | None
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    # As for `python -m`: a model of one's own is found from the folder that one works in.
    if "" not in sys.path:
        sys.path.insert(0, "")
    with stages("load"):
        model = load_model(spec, **({"pretrained": True} if pretrained else {})).eval()
        if weights is not None:
            _load_weights(model, weights)
        return model, _inputs_of(shapes) if shapes else example_inputs(model)


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FxpruneError(f"--weights: there is no file {path}") from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FxpruneError(f"--weights: {path} is not a state dict that loads safely: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FxpruneError(f"--weights: {path} holds a {type(state).__name__}, not a state dict (name -> tensor)")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FxpruneError(f"--weights: {path} does not fit the model: {error}") from error


def _inputs_of(shapes: list[str]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for shape in shapes:
        parts = shape.replace("x", ",").split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise typer.BadParameter(f"{shape!r} is not a shape such as 1,3,224,224", param_hint="--input")
        inputs.append(torch.randn([int(part) for part in parts], generator=generator))
    return tuple(inputs)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FxpruneError(f"--output: {path} cannot be made a folder: {error.strerror}") from error


def _save(directory: Path, pruned: fx.GraphModule, record: dict[str, Any]) -> None:
    # Tied weights share memory, which safetensors refuses to write.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in pruned.state_dict().items()}
    try:
        save_file(state, directory / "model.safetensors", metadata={"format": "pt", "source": record["model"]})
        (directory / "plan.json").write_text(json.dumps(record, indent=1) + "\n")
        (directory / "model.py").write_text(pruned.code.lstrip("\n"))
    except OSError as error:
        raise FxpruneError(f"--output: cannot write to {directory}: {error.strerror}") from error


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _versions(spec: str) -> dict[str, str]:
    library = spec.partition(":")[0]
    used = ["fxprune", "torch", *([library] if library in ("timm", "torchvision") else [])]
    return {"python": platform.python_version(), **{name: _version(name) for name in used}}


def _print_summary(summary: dict[str, Any], groups: list[dict[str, Any]], output: Path) -> None:
    console = Console()
    table = Table(title=f"{summary['model']}: channels", title_justify="left")
    table.add_column("group", overflow="fold")
    for column in ("layers", "before", "after", "cut"):
        table.add_column(column, justify="right")
    for group in groups:
        cut = 1 - group["after"] / group["before"]
        numbers = (group["layers"], group["before"], group["after"])
        table.add_row(group["name"], *map(str, numbers), f"{cut:.0%}" if group["after"] < group["before"] else "-")
    console.print(table)
    for what, unit in (("flops", "FLOPs"), ("parameters", "parameters")):
        before, after = summary[f"{what}_before"], summary[f"{what}_after"]
        console.print(f"{unit:<11}{before:>16,} -> {after:>14,}  ({after / before:.1%})", highlight=False)
    console.print(f"{'error':<11}{summary['error']:>16.1e}  against the zero-masked original", highlight=False)
    seconds = summary["seconds"]
    each = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    console.print(f"{'seconds':<11}{sum(seconds.values()):>16.1f}  ({each})", highlight=False)
    console.print(f"saved in {output}", highlight=False, soft_wrap=True)

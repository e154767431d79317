"""`fxprune prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from fxprune.api import prune as prune_model
from fxprune.cli import common
from fxprune.cli.images import Data, Download, Mean, Preprocessing, Std, open_images, preprocessing_for
from fxprune.cli.models import build, inputs_of
from fxprune.errors import FxpruneError
from fxprune.files.checkpoint import save
from fxprune.files.writing import replace_file
from fxprune.losses import number_of_classes
from fxprune.models import example_inputs
from fxprune.reporting.measuring import certify
from fxprune.reporting.report import report
from fxprune.reporting.text import summary

__all__ = ["prune"]


def _multiple(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a whole number of at least 1 nor 'auto'")
    return int(text)


def _time(text: str) -> float | str:
    """A number, or else a time with its unit."""
    try:
        return float(text)
    except ValueError:
        return text


def prune(
    model: common.Model,
    output: common.Output,
    flops: Annotated[
        float | None,
        typer.Option(help="budget: a fraction of the FLOPs in (0, 1], or a count per sample", show_default="0.5"),
    ] = None,
    latency: Annotated[
        Any,
        typer.Option(
            parser=_time, metavar="TIME", show_default=False,
            help="budget: a fraction of the time that the model takes on this machine, or a time such as 3ms",
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(help="budget: a fraction of the parameters, or a count above 1", show_default=False),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(help="budget: a fraction of the peak memory of activations, or bytes", show_default=False),
    ] = None,
    data: Data = None,
    samples: Annotated[int, typer.Option(min=1, help="number of images to use")] = 128,
    method: Annotated[
        str | None,
        typer.Option(help="how to score channels, see fxprune.scores (default: surgeon on samples, else relevance)"),
    ] = None,
    compensate: Annotated[
        bool,
        typer.Option("--compensate/--no-compensate", help="whether to fit the kept weights to the original's outputs"),
    ] = True,
    round_to: Annotated[
        Any,
        typer.Option(
            parser=_multiple, metavar="N", help="changed widths become multiples of N; auto chooses N for the device"
        ),
    ] = "auto",
    min_channels: Annotated[int, typer.Option(min=1, help="so many channels of each group stay")] = 1,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="name or glob of modules to leave whole; repeatable")
    ] = None,
    depth: Annotated[
        bool | None,
        typer.Option(
            "--depth/--no-depth",
            help="whether blocks, as residual branches are, may be left out",
            show_default="yes, where there are samples",
        ),
    ] = None,
    width: Annotated[bool, typer.Option("--width/--no-width", help="whether channels may be removed")] = True,
    quality: Annotated[
        Literal["fast", "normal", "best"], typer.Option(help="how much work goes into the choice on samples")
    ] = "normal",
    weights: common.Weights = None, pretrained: common.Pretrained = False,
    arguments: common.Arguments = None, input_shape: common.Input = None,
    mean: Mean = None, std: Std = None, download: Download = False, seed: common.Seed = 0,
    code: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the forward pass as Python code, a .py file")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="whether to compare with the zero-masked original first")
    ] = True,
    as_json: common.AsJson = False, debug: common.Debug = False,
) -> None:  # fmt: skip
    """Prune a model to a budget of FLOPs or time, and save it.

    Data is optional, but a hundred images, with or without labels, give a much better model. Without data, photographs
    that scikit-image carries take their place, changed where the model's BatchNorm statistics say that it was trained
    on something else. `fxprune.load` loads the file.
    """
    common.check_output(output, ".safetensors")
    if code is not None:
        common.check_output(code, ".py")
    stages = common.Stages()
    given = inputs_of(input_shape)
    with stages("load"):
        network = build(model, arguments, weights, pretrained)
        inputs = given or example_inputs(network)
        batches = None
        if data is not None:
            how = preprocessing_for(network, inputs, mean, std)
            batches = _batches(data, network, inputs, how, samples, seed, download)
    with stages("prune") as show:
        small = prune_model(
            network, flops, latency=latency, params=params, memory=memory, example_inputs=inputs, data=batches,
            method=method, compensate=compensate, samples=samples, ignore=ignore or (), round_to=round_to, depth=depth,
            width=width, quality=quality, min_channels=min_channels, seed=seed, progress=show,
        )  # fmt: skip
    certificate = None
    if verify:
        with stages("verify"):
            certificate = certify(network, small)
        if not certificate.holds:
            raise FxpruneError(
                f"not saved: the result differs from the zero-masked original by {certificate.error:.1e}. Either "
                "this is a bug of fxprune, or the model is random in eval mode: then give --no-verify"
            )
    with stages("save"):
        save(small, output)
        if code is not None:
            _write_code(code, small.code)
    facts = report(small, original=network, measure=False)
    if as_json:
        error = None if certificate is None else certificate.error
        names = (
            "model",
            "flops",
            "flops_target",
            "latency_target",
            "parameters",
            "params_target",
            "memory_target",
            "compensated",
            "samples",
            "blocks",
            "groups",
            "frozen",
        )
        shown = {name: value for name, value in facts.to_dict().items() if name in names}
        common.print_json({**shown, "error": error, "seconds": stages.seconds, "output": str(output)})
    else:
        console = Console()
        console.print(summary(facts))
        if certificate is not None:
            console.print(f"certificate: {certificate.of}, error {certificate.error:.1e}", highlight=False)
        console.print(f"saved in {output}; for each layer: fxprune report {output}", highlight=False, soft_wrap=True)
    if not weights and not pretrained and model.partition(":")[0] in ("timm", "torchvision"):
        typer.echo("note: the weights are random; give --weights FILE or --pretrained", err=True)


def _batches(
    source: str,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    how: Preprocessing,
    samples: int,
    seed: int,
    download: bool,
) -> Any:
    """Batches of the data, with labels only if there are as many classes as the model has outputs."""
    loader, classes = open_images(source, how, batch_size=min(samples, 32), download=download, seed=seed)
    if classes is None:
        return loader
    with torch.no_grad():
        outputs = number_of_classes(model(*inputs))
    if outputs == classes:
        return loader
    typer.echo(f"note: labels are not used: the data has {classes} classes, the model {outputs}", err=True)
    return _Unlabelled(loader)


class _Unlabelled:
    """The inputs of a loader without the labels."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return (inputs for inputs, _ in self.loader)


def _write_code(path: Path, code: str) -> None:
    replace_file(path, code.lstrip("\n").encode(), "--code")

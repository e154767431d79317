"""`fxprune finetune`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from fxprune.cli import common
from fxprune.cli.images import Download, Mean, Std, open_images, preprocessing_for
from fxprune.cli.models import load_original, load_pruned
from fxprune.errors import FxpruneError
from fxprune.files.checkpoint import save
from fxprune.losses import main_output, number_of_classes
from fxprune.tracing.notes import call_of
from fxprune.training.finetune import Epoch
from fxprune.training.finetune import finetune as finetune_model

__all__ = ["finetune"]


def finetune(
    file: common.File,
    data: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="images to train on: imagefolder:DIR (one folder for each class) or torchvision:NAME:ROOT",
        ),
    ],
    output: common.Output,
    eval_data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="images to measure the accuracy on after each epoch")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the data")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="images per update")] = 64,
    lr: Annotated[
        float | None,
        typer.Option(
            help="highest learning rate (default: 0.01 for sgd, 0.0001 for adamw; a tenth for fewer than 1,000 images "
            "if the model was compensated)"
        ),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw")] = "sgd",
    augment: Annotated[bool, typer.Option("--augment", help="crop and flip images at random")] = False,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="file for the state of the run after each epoch; an interrupted run resumes from it"
        ),
    ] = None,
    model: common.OriginalModel = None, arguments: common.Arguments = None,
    weights: common.Weights = None, pretrained: common.Pretrained = False,
    mean: Mean = None, std: Std = None, download: Download = False,
    workers: Annotated[int, typer.Option(min=0, help="number of processes that read images")] = 0,
    seed: common.Seed = 0, as_json: common.AsJson = False, debug: common.Debug = False,
) -> None:  # fmt: skip
    """Fine-tune a pruned model for a few epochs.

    With the weights of the original, from `--weights` or `--pretrained`, the original is the teacher: the pruned model
    also learns its outputs, and images need no labels.
    """
    common.check_output(output, ".safetensors")
    stages = common.Stages()
    with stages("load"):
        pruned = load_pruned(file, model, arguments)
        original = load_original(pruned, model, arguments, weights, pretrained)
        how = preprocessing_for(pruned if original is None else original, call_of(pruned)[0], mean, std)
        given: dict[str, Any] = {"batch_size": batch_size, "download": download, "workers": workers, "seed": seed}
        loader, classes = open_images(data, how, augment=augment, **given)
        _check_classes(pruned, classes, "--data")
        taught = weights is not None or pretrained
        if not taught and isinstance(loader.dataset[0], torch.Tensor):
            raise FxpruneError(
                "--data has no labels: give a folder with one folder for each class, or give --weights or "
                "--pretrained to learn from the original"
            )
        held_out = None
        if eval_data is not None:
            held_out, classes = open_images(eval_data, how, train=False, shuffle=False, option="--eval-data", **given)
            _check_classes(pruned, classes, "--eval-data")
        before = None if held_out is None else _accuracy(pruned, held_out)
    history: list[Epoch] = []
    if before is not None and not as_json:
        typer.echo(f"accuracy before: {before:.2%}")

    def on_epoch(epoch: Epoch) -> None:
        history.append(epoch)
        if not as_json:
            accuracy = "" if epoch.evaluation is None else f", accuracy {epoch.evaluation:.2%}"
            typer.echo(f"epoch {epoch.number}: loss {epoch.loss:.4f}{accuracy}, {epoch.seconds:.1f} s")

    with stages("finetune") as show:
        tuned = finetune_model(
            pruned, loader, teacher=original if taught else None, epochs=epochs, lr=lr, optimizer=optimizer,
            mixed_precision=mixed_precision, checkpoint=checkpoint, seed=seed, progress=show, on_epoch=on_epoch,
            evaluate=None if held_out is None else lambda model: _accuracy(model, held_out),
        )  # fmt: skip
    save(tuned, output)
    if as_json:
        epochs_run = [asdict(epoch) for epoch in history]
        common.print_json({"file": str(file), "output": str(output), "accuracy_before": before, "epochs": epochs_run})
    else:
        typer.echo(f"saved in {output}")


def _check_classes(pruned: nn.Module, classes: int | None, option: str) -> None:
    args, kwargs = call_of(pruned)
    with torch.no_grad():
        outputs = number_of_classes(pruned.eval()(*args, **kwargs))
    if classes is not None and outputs is not None and classes > outputs:
        raise FxpruneError(
            f"{option} has {classes} classes, but the model has {outputs} outputs: give data with at most {outputs}"
        )


def _accuracy(model: nn.Module, data: Any) -> float:
    """The fraction of images whose class gets the highest score."""
    right = seen = 0
    device = next(model.parameters()).device
    for batch in data:
        if isinstance(batch, torch.Tensor):
            raise FxpruneError("--eval-data has no labels: give a folder with one folder for each class")
        images, labels = batch
        with torch.no_grad():
            found = main_output(model(images.to(device))).argmax(1).cpu()
        right += int((found == labels).sum())
        seen += len(labels)
    return right / max(seen, 1)

"""What the recipes share: the stages in order, and a small ResNet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxprune
from fxprune.data import calibration_batch
from fxprune.gates.learning import learn_gates
from fxprune.training.finetune import Epoch, finetune
from fxprune.training.sharding import Shards


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every recipe has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder of checkpoints and weights; a second run continues there"
    )
    parser.add_argument("--weights", type=Path, help="safetensors file with the state_dict of the unpruned model")
    options: dict[str, tuple[type, Any, str]] = {
        "flops": (float, 0.5, "the budget, as a fraction of the unpruned model's FLOPs"),
        "gate_epochs": (int, 1, "epochs of gate learning"),
        "epochs": (int, 10, "epochs of fine-tuning"),
        "batch_size": (int, 128, "samples per step, of all processes together"),
        "lr": (float, 0.02, "peak learning rate of fine-tuning"),
        "workers": (int, 0, "data loading processes per training process"),
    }
    for name, (kind, default, text) in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=defaults.pop(name, default), help=text)
    parser.set_defaults(**defaults)
    return parser


def prune_and_finetune(
    model: nn.Module, example: Tensor, train: DataLoader[Any], test: DataLoader[Any], options: argparse.Namespace
) -> nn.Module:
    """Learn gates, prune to the budget, fine-tune on labels and the unpruned model's outputs; save in `--out`."""
    model = model.eval()
    say(f"processes: {PartialState().num_processes}")
    say(f"unpruned: {fxprune.count_flops(model, example):,} FLOPs, test accuracy {accuracy(model, test):.4f}")
    graph = fxprune.analyze(fxprune.trace(model, example))
    gates = learn_gates(
        graph, train, flops=options.flops, epochs=options.gate_epochs, checkpoint=options.out / "gates.safetensors"
    )
    pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, gates.scores, flops=options.flops))
    say(f"pruned: {fxprune.count_flops(pruned, example):,} FLOPs, test accuracy {accuracy(pruned, test):.4f}")
    # So that every process draws the same samples.
    torch.manual_seed(0)
    pruned = fxprune.compensate(graph, pruned, calibration_batch(train, 256))
    say(f"compensated: test accuracy {accuracy(pruned, test):.4f}")
    tuned = finetune(
        pruned,
        train,
        teacher=model,
        epochs=options.epochs,
        lr=options.lr,
        warmup=0.5,
        checkpoint=options.out / "finetune.safetensors",
        evaluate=lambda candidate: accuracy(candidate, test),
        on_epoch=say_epoch,
    )
    if PartialState().is_main_process:
        save_file(
            {name: value.contiguous() for name, value in tuned.state_dict().items()}, options.out / "pruned.safetensors"
        )
    say(f"fine-tuned: test accuracy {accuracy(tuned, test):.4f}")
    # A process that exits while another still holds a connection to it can be aborted.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
    return tuned


def trained(
    model: nn.Module, train: Any, test: Any, options: argparse.Namespace, *, epochs: int, lr: float
) -> nn.Module:
    """The model with the weights of `--weights`, or trained from scratch."""
    if options.weights is not None:
        model.load_state_dict(load_file(options.weights))
        return model
    return finetune(
        model,
        train,
        epochs=epochs,
        lr=lr,
        warmup=min(1.0, epochs / 5),
        weight_decay=5e-4,
        checkpoint=options.out / "base.safetensors",
        evaluate=lambda candidate: accuracy(candidate, test),
        on_epoch=say_epoch,
    )


@torch.no_grad()
def accuracy(model: nn.Module, test: DataLoader[Any]) -> float:
    """The share of test images that are labelled correctly; each process counts its part."""
    state = PartialState()
    training, before = model.training, next(model.parameters()).device
    model.eval().to(state.device)
    counts = torch.zeros(2, device=state.device)
    for _, batch in Shards(test, state.process_index, state.num_processes).epoch(0):
        there = batch.to(state.device)
        assert there.labels is not None
        right = (model(*there.args).argmax(1) == there.labels).sum()
        counts += torch.stack([right, torch.full_like(right, batch.size)])
    model.train(training).to(before)
    right, seen = reduce(counts, "sum").tolist()
    return right / seen


def say(text: str) -> None:
    """Print in the main process."""
    PartialState().print(text, flush=True)


def say_epoch(epoch: Epoch) -> None:
    """Print one line per epoch."""
    say(
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, test accuracy {epoch.evaluation or 0:.4f}, {epoch.seconds:.0f} s"
    )


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        """Residual sum, then ReLU."""
        return torch.relu(self.body(x) + self.shortcut(x))


def small_resnet(blocks: int, channels: int, classes: int = 10, width: int = 16, stride: int = 1) -> nn.Sequential:
    """The CIFAR ResNet with `6 * blocks + 2` layers; `stride` of the first convolution."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(3):
        for block in range(blocks):
            layers.append(Block(before, width * 2**stage, 2 if stage and not block else 1))
            before = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

"""How long `fxprune.prune` takes, compared with Torch-Pruning on the same models.

    pip install torch-pruning
    python tests/benchmarks/speed.py [MODEL ...] [--rounds 5] [--at-most 1.0]

Both prune by group magnitude, without data, in one step and on one thread: fxprune to half of the FLOPs, Torch-Pruning
by a ratio of channels that leaves about half. They take turns on fresh copies of the model. The table has the medians
of CPU seconds from the model to the pruned model. `--at-most R` exits with 1 if fxprune takes more than R times as long
for any model.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from shared import parser_of, settle
from torch import nn

import fxprune
from fxprune.models import example_inputs, load_model

MODELS = (
    *("timm:resnet50", "torchvision:resnet50", "timm:resnet18", "torchvision:resnet152", "timm:vgg16_bn"),
    *("timm:efficientnet_b0", "timm:mobilenetv3_large_100", "torchvision:mobilenet_v2", "timm:regnety_008"),
    *(
        "timm:densenet121",
        "torchvision:densenet121",
        "timm:inception_v3",
        "torchvision:googlenet",
        "timm:convnext_tiny",
    ),
    *("timm:vit_tiny_patch16_224", "torchvision:convnext_base"),
)
# FLOPs go by the square of the width, so this leaves about half of those of a plain convolutional network.
RATIO = 0.3


def with_fxprune(model: nn.Module, inputs: tuple[Any, ...]) -> object:
    """What is timed: the whole call."""
    return fxprune.prune(model, flops=0.5, example_inputs=inputs, method="l2", compensate=False)


def with_torch_pruning(model: nn.Module, inputs: tuple[Any, ...]) -> object:
    """The same with Torch-Pruning; the classifier stays whole, as its users do it."""
    import torch_pruning

    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs[0],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=classifier,
    )
    pruner.step()
    return model


def compare(spec: str, rounds: int) -> tuple[list[float], list[float] | str]:
    """CPU seconds of fxprune and of Torch-Pruning, or why the latter fails."""
    model = load_model(spec).eval()
    inputs = example_inputs(model)
    ours: list[float] = []
    theirs: list[float] = []
    reason = ""
    for turn in range(rounds + 1):
        first = seconds(with_fxprune, model, inputs)
        if not reason:
            try:
                second = seconds(with_torch_pruning, copy.deepcopy(model), inputs)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
        # The first turn includes imports and first calls, so it is not counted.
        if turn:
            ours.append(first)
            theirs.append(second if not reason else 0.0)
    return ours, reason or theirs


def seconds(prune: Callable[[nn.Module, tuple[Any, ...]], object], model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """CPU seconds of one call."""
    gc.collect()
    start = time.process_time()
    prune(model, inputs)
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help="such as timm:resnet50")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each (default 5)")
    parser.add_argument("--at-most", type=float, metavar="RATIO", help="exit with 1 if fxprune takes longer")
    options = parser.parse_args(arguments)
    settle()
    print(f"{'CPU seconds, medians':<30} {'fxprune':>9} {'Torch-Pruning':>14} {'ratio':>7}")
    worst = 0.0
    for spec in options.models:
        ours, theirs = compare(spec, options.rounds)
        mine = statistics.median(ours)
        if isinstance(theirs, str):
            print(f"{spec:<30} {mine:>9.3f} fails: {theirs}", flush=True)
            continue
        other = statistics.median(theirs)
        worst = max(worst, mine / other)
        print(f"{spec:<30} {mine:>9.3f} {other:>14.3f} {mine / other:>7.2f}", flush=True)
    return int(options.at_most is not None and worst > options.at_most)


if __name__ == "__main__":
    sys.exit(main())

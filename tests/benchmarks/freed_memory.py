"""What it saves to keep freed memory: forward and backward passes on a CPU, with and without `keep_freed_memory`.

    python tests/benchmarks/freed_memory.py [--only timm:resnet50 ...] [--batch 16] [--pixels 224] [--rounds 5]

Both take turns in one process and on one thread. The table has the median time of a pass, and how many pages the system
cleared during it.
"""

from __future__ import annotations

import resource
import statistics
import time

import torch
from shared import parser_of, settle
from torch import Tensor, nn

from fxprune.models import load_model
from fxprune.running.allocator import keep_freed_memory

MODELS = ("timm:tf_efficientnet_lite0", "timm:resnet50", "timm:mobilenetv2_100", "timm:vit_small_patch16_224")


def one_pass(model: nn.Module, images: Tensor) -> tuple[float, int]:
    """Seconds, and the number of cleared pages."""
    pages, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    model(images).sum().backward()
    model.zero_grad()
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages


def compare(model: nn.Module, images: Tensor, rounds: int) -> list[tuple[float, float]]:
    """Medians of seconds and pages, without and with `keep_freed_memory`."""
    usual, kept = [], []
    for _ in range(rounds):
        usual += [one_pass(model, images) for _ in range(2)][1:]
        with keep_freed_memory():
            kept += [one_pass(model, images) for _ in range(3)][2:]
    return [tuple(map(statistics.median, zip(*found, strict=True))) for found in (usual, kept)]


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    settle()
    print(f"{'one pass, medians':<30} {'usual s':>8} {'kept s':>8} {'ratio':>6} {'pages':>9} {'kept':>9}")
    for name in options.only:
        torch.manual_seed(0)
        model = load_model(name).train().to(memory_format=torch.channels_last)
        images = torch.randn(options.batch, 3, options.pixels, options.pixels)
        images = images.contiguous(memory_format=torch.channels_last)
        (usual, pages), (kept, fewer) = compare(model, images, options.rounds)
        print(f"{name:<30} {usual:>8.2f} {kept:>8.2f} {kept / usual:>6.2f} {pages:>9.0f} {fewer:>9.0f}", flush=True)


if __name__ == "__main__":
    main()

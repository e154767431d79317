"""What gates cost: a training step with gates, compared with the same step without.

    python tests/benchmarks/gate_step.py [--rounds 15] [--at-most 1.15] [--only resnet20 ...]
        [--device cpu] [--batch 8] [--pixels 128]

A step is a forward pass, a backward pass and an update of the weights by SGD. With gates it is all that `learn_gates`
does in a step: their loss, backward pass and update too. Both take turns in one process and on one thread. The table
has medians of processor time; on a GPU, of the time until it is done. The process keeps the memory that it frees: how
often glibc returns it to the system and requests it again differs between runs by more than gates cost. `--at-most R`
exits with 1 if the ratio is above R for any model.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from nets import NETS
from shared import parser_of, settle
from torch import Tensor, nn

import fxprune
from fxprune.gates.learning import learn_gates
from fxprune.models import load_model

_KEPT = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}

REAL = ("timm:resnet50", "timm:mobilenetv2_100")


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


def _keep_memory() -> None:
    """On Linux, restart the process with settings that make glibc keep freed memory."""
    if sys.platform == "linux" and not _KEPT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_KEPT})


def _case(name: str, batch: int, pixels: int) -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(0)
    if name in NETS:
        return NETS[name](), torch.randn(128, 1, 28, 28), 10
    return load_model(name), torch.randn(batch, 3, pixels, pixels), 1000


class Turns:
    """Seconds of both steps. The gates use it as their data; each time they draw a batch, it makes a plain step."""

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, rounds: int) -> None:
        self.model, self.inputs, self.labels, self.rounds = model.train(), inputs, labels, rounds
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        self.plain: list[float] = []
        self.gated: list[float] = []

    def __len__(self) -> int:
        return self.rounds + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The first turn includes first calls, so it is not counted.
        for turn in range(len(self)):
            began = _now(self.inputs.device)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.inputs), self.labels).backward()
            self.optimizer.step()
            plain_at = _now(self.inputs.device)
            yield self.inputs, self.labels
            if turn:
                self.plain.append(plain_at - began)
                self.gated.append(_now(self.inputs.device) - plain_at)


def compare(name: str, rounds: int, device: str, batch: int, pixels: int) -> Turns:
    """Seconds of each step."""
    model, inputs, classes = _case(name, batch, pixels)
    model = model.to(device, memory_format=torch.channels_last)
    inputs = inputs.to(device, memory_format=torch.channels_last)
    graph = fxprune.analyze(fxprune.trace(model.train(), inputs[:1]))
    turns = Turns(model, inputs, torch.arange(len(inputs), device=device) % classes, rounds)
    learn_gates(graph, turns, flops=0.5, start="relevance", progress=False)
    return turns


def main() -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="*", default=[*NETS, *REAL], metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each (default 15)")
    parser.add_argument("--at-most", type=float, metavar="RATIO", help="exit with 1 if gates cost more")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="images for the models of timm (default 8)")
    parser.add_argument("--pixels", type=int, default=128, help="and their size (default 128)")
    options = parser.parse_args()
    _keep_memory()
    settle()
    print(f"{'one step, medians':<24} {'plain ms':>9} {'gated ms':>9} {'ratio':>7}")
    worst = 0.0
    for name in options.only:
        turns = compare(name, options.rounds, options.device, options.batch, options.pixels)
        plain, gated = statistics.median(turns.plain), statistics.median(turns.gated)
        worst = max(worst, gated / plain)
        print(f"{name:<24} {1000 * plain:>9.1f} {1000 * gated:>9.1f} {gated / plain:>7.3f}", flush=True)
    return int(options.at_most is not None and worst > options.at_most)


if __name__ == "__main__":
    sys.exit(main())

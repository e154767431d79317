"""How long `fxprune.prune` takes in this checkout, compared with another checkout of fxprune.

    pip install timm onnx2torch && pip install --no-deps nudenet
    python tests/benchmarks/speed_against.py /path/to/the/other/checkout [--rounds 15] [--at-most 1.05]

Each checkout has its own process, on one thread. In each round both prune the same model, in alternating order. The
table has the medians of CPU seconds, and the median and quartiles of the ratios within a round: if the machine gets
slower during the run, it changes both sides of a ratio. `--at-most R` exits with 1 if a median ratio is above R.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared import parser_of, settle
from speed import seconds, with_fxprune
from torch import nn, zeros

import fxprune
from fxprune.models import example_inputs, load_model

HERE = Path(__file__).resolve().parent
YOLO = "nudenet:yolov8n"
MODELS = ("timm:resnet50", "timm:efficientnet_b0", "timm:vit_tiny_patch16_224", YOLO)


@functools.cache
def model_and_inputs(spec: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model that `load_model` knows, or the YOLOv8n detector of the package nudenet, which is an ONNX file."""
    if spec != YOLO:
        model = load_model(spec).eval()
        return model, example_inputs(model)
    package = importlib.util.find_spec("nudenet")
    if package is None or not package.submodule_search_locations:
        raise SystemExit(f"{YOLO} needs: pip install --no-deps nudenet")
    file = Path(package.submodule_search_locations[0]) / "320n.onnx"
    return importlib.import_module("onnx2torch").convert(str(file)).eval(), (zeros(1, 3, 320, 320),)


def serve() -> None:
    """Print where fxprune is; then prune each model that standard input names, and print the seconds that it took."""
    settle()
    print(fxprune.__file__, flush=True)
    for line in sys.stdin:
        print(seconds(with_fxprune, *model_and_inputs(line.strip())), flush=True)


class Server:
    """A process that prunes with the fxprune of one checkout."""

    def __init__(self, checkout: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.process = subprocess.Popen([sys.executable, __file__, "--serve"], **pipes)
        place = Path(self._read().strip())
        assert checkout in place.parents, f"the fxprune of {checkout} is hidden by {place}"

    def __call__(self, spec: str) -> float:
        """CPU seconds of one pruning."""
        assert self.process.stdin is not None
        print(spec, file=self.process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def servers(*checkouts: Path) -> Iterator[list[Server]]:
    """A server for each checkout; they end with the block."""
    made = [Server(checkout) for checkout in checkouts]
    try:
        yield made
    finally:
        for server in made:
            server.process.communicate()


def compare(ours: Server, theirs: Server, spec: str, rounds: int) -> list[tuple[float, float]]:
    """CPU seconds of both, for each round but the first, which includes imports and first calls."""
    found = []
    for turn in range(rounds + 1):
        first, second = (ours, theirs) if turn % 2 else (theirs, ours)
        times = {first: first(spec), second: second(spec)}
        found.append((times[ours], times[theirs]))
    return found[1:]


def main() -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("checkout", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument("--only", nargs="*", default=MODELS, metavar="MODEL", help="such as timm:resnet50")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each model (default 15)")
    parser.add_argument("--at-most", type=float, metavar="RATIO", help="exit with 1 if this checkout takes longer")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if options.checkout is None or not (options.checkout / "fxprune").is_dir():
        parser.error(f"checkout (={options.checkout}) must be a folder that has fxprune/ in it")
    print(f"{'CPU seconds, medians':<30} {'here':>9} {'there':>9} {'ratio':>7} {'quartiles':>14}")
    worst = 0.0
    with servers(HERE.parents[1], options.checkout.resolve()) as (ours, theirs):
        for spec in options.only:
            times = compare(ours, theirs, spec, options.rounds)
            low, ratio, high = statistics.quantiles((here / there for here, there in times), n=4)
            here, there = (statistics.median(column) for column in zip(*times, strict=True))
            worst = max(worst, ratio)
            print(f"{spec:<30} {here:>9.3f} {there:>9.3f} {ratio:>7.3f}   {low:.3f} to {high:.3f}", flush=True)
    return int(options.at_most is not None and worst > options.at_most)


if __name__ == "__main__":
    sys.exit(main())

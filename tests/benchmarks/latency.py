"""How much faster models at half of their FLOPs are: pruned by FLOPs, by time, and by Torch-Pruning.

    pip install torch-pruning
    python tests/benchmarks/latency.py [MODEL ...] [--device cpu] [--threads 1] [--batch 1] [--dtype float32]
        [--channels-last] [--rounding 1,8,16] [--repeats 30] [--no-peer] [--output build/latency.jsonl]
    python tests/benchmarks/latency.py --report        docs/latency.md, from these rows and those of latency_budget.py

The original and all of its pruned versions take turns in one measurement; only such figures can be compared. For each
the table has its fraction of the original's FLOPs, the median latency and its interquartile range, the speed-up, and
the speed-up as a fraction of the ideal one, which time proportional to FLOPs would give. Weights are random, so the
choice of channels is too. "by time" is `prune(flops=0.5, latency=1)`; "uniform" is `prune(flops=0.5,
method="uniform")`, which prunes all layers by the same ratio, as Torch-Pruning does by default; "blocks alone" is
`prune(flops=0.5, width=False)`, on random inputs, of models that reach half of the FLOPs so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from latency_report import write_report
from peers import prune_with_peer
from shared import append_row, parser_of, read_rows, settle
from torch import Tensor, nn

import fxprune
from fxprune.models import example_inputs, load_model

MODELS = (
    "timm:resnet50",
    "timm:mobilenetv2_100",
    "timm:efficientnet_b0",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_tiny",
)
PEER = "tp-magnitude"
WAYS: dict[str, dict[str, Any]] = {"by FLOPs": {}, "by time": {"latency": 1.0}, "uniform": {"method": "uniform"}}


def placed(spec: str, options: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    """The model and a batch, on the device and in the dtype and memory format of the measurement."""
    torch.manual_seed(0)
    model = load_model(spec).eval()
    (image,) = example_inputs(model)
    model.to(options.device, getattr(torch, options.dtype))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    return model, torch.randn(options.batch, *image.shape[1:]).to(options.device, getattr(torch, options.dtype))


def versions(model: nn.Module, images: Tensor, options: argparse.Namespace) -> dict[str, nn.Module | str]:
    """The original and its pruned versions by name, or the reason why a version cannot be made."""
    found: dict[str, nn.Module | str] = {"original": model}
    rounding = [int(multiple) for multiple in options.rounding.split(",")]
    ways = {
        f"{way}, {multiple}": {"round_to": multiple, **asked} for multiple in rounding for way, asked in WAYS.items()
    }
    few = images.new_empty(8, *images.shape[1:]).normal_()
    joint: dict[str, dict[str, Any]] = {
        "blocks alone": {"width": False, "data": [few]},
        "by FLOPs with blocks": {"data": [few]},
        "by time with blocks": {"latency": 1.0, "data": [few]},
    }
    for way, asked in {**ways, **joint}.items():
        try:
            settings: dict[str, Any] = {"example_inputs": images, "compensate": False, "progress": False}
            found[f"fxprune {way}"] = fxprune.prune(model, options.flops, **settings, **asked)
        except fxprune.FxpruneError as error:
            found[f"fxprune {way}"] = _short(error)
    for multiple in [] if options.no_peer else rounding:
        name = f"Torch-Pruning, {multiple}"
        try:
            found[name] = prune_with_peer(PEER, model, options.flops, images, (), round_to=multiple)
        except Exception as error:
            found[name] = _short(error)
    return found


def rows(spec: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each version of a model."""
    model, images = placed(spec, options)
    found = versions(model, images, options)
    models = {name: model for name, model in found.items() if isinstance(model, nn.Module)}
    if options.channels_last:
        for version in models.values():
            # Torch-Pruning returns contiguous weights.
            version.to(memory_format=torch.channels_last)
    flops = {name: fxprune.count_flops(model, images) for name, model in models.items()}
    measured = fxprune.measure_latency(list(models.values()), images, repeats=options.repeats)
    times = dict(zip(models, measured, strict=True))
    for name in found:
        row: dict[str, Any] = {"kind": "speed", "model": spec, "version": name}
        if name not in models:
            yield {**row, "batch": options.batch, "fails": found[name]}
            continue
        time = times[name]
        yield {
            **row,
            "flops": flops[name] / flops["original"],
            "seconds": time.seconds,
            "spread": time.spread,
            "original": times["original"].seconds,
            "batch": time.batch_size,
            "how": f"{time.device}, {time.threads} thread(s), {time.dtype}, {time.memory_format}",
        }


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    if "fails" in row:
        return f"  {row['version']:<28} fails: {row['fails']}"
    gain = row["original"] / row["seconds"]
    return (
        f"  {row['version']:<28} {row['flops']:>7.3f} {row['seconds'] * 1e3:>10.2f} {row['spread'] * 1e3:>8.2f} "
        f"{gain:>9.2f} {gain * row['flops']:>7.2f}"
    )


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help="such as timm:resnet50")
    parser.add_argument("--flops", type=float, default=0.5, help="budget (default 0.5)")
    parser.add_argument("--rounding", default="1,8,16", help="multiples of widths (default 1,8,16)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--output", type=Path, default=Path("build/latency.jsonl"))
    parser.add_argument("--report", action="store_true", help="write the page of the results instead")
    options = parser.parse_args(arguments)
    if options.report:
        write_report(read_rows(options.output))
        return 0
    settle(options.threads)
    print(f"  {'':<28} {'FLOPs':>7} {'median ms':>10} {'IQR ms':>8} {'speed-up':>9} {'ideal':>7}")
    for spec in options.models:
        print(spec)
        for row in rows(spec, options):
            append_row(options.output, row)
            print(line(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

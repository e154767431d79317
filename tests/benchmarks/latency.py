"""How much faster models at half of their FLOPs are, beside Torch-Pruning's at equal FLOPs.

    pip install torch-pruning
    python tests/benchmarks/latency.py [MODEL ...] [--device cpu] [--threads 1] [--batch 1] [--dtype float32]
        [--channels-last] [--rounding 1,8,16] [--repeats 30] [--no-peer]

The original and all of its pruned versions take turns in one measurement, since only such figures can be compared. For
each the table has its part of the original's FLOPs, the median latency and its interquartile range, the speed-up, and
that as a part of the ideal: what it were if time went by FLOPs. Weights are random, as are the widths' rank among them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import nn

import fxprune
from fxprune.models import example_inputs, load_model

try:
    from benchmarks.peers import prune_with_peer
except ImportError:
    from peers import prune_with_peer

MODELS = (
    "timm:resnet50",
    "timm:mobilenetv2_100",
    "timm:efficientnet_b0",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_tiny",
)
PEER = "tp-magnitude"


def versions(spec: str, budget: float, rounding: Sequence[int], peer: bool) -> dict[str, nn.Module | str]:
    """The original and its pruned versions by name; where one cannot be made, the reason."""
    torch.manual_seed(0)
    model = load_model(spec).eval()
    found: dict[str, nn.Module | str] = {"original": model}
    for multiple in rounding:
        try:
            found[f"fxprune, round_to={multiple}"] = fxprune.prune(model, budget, round_to=multiple, compensate=False)
        except fxprune.FxpruneError as error:
            found[f"fxprune, round_to={multiple}"] = _short(error)
    for multiple in rounding if peer else ():
        name = f"Torch-Pruning, round_to={multiple}"
        try:
            found[name] = prune_with_peer(PEER, model, budget, example_inputs(model)[0], (), round_to=multiple)
        except Exception as error:
            found[name] = _short(error)
    return found


def rows(spec: str, options: argparse.Namespace) -> list[str]:
    """The lines of a model's table."""
    found = versions(spec, options.flops, [int(k) for k in options.rounding.split(",")], not options.no_peer)
    models = {name: model for name, model in found.items() if isinstance(model, nn.Module)}
    (image,) = example_inputs(load_model(spec))
    flops = {name: fxprune.count_flops(model, image) for name, model in models.items()}
    for model in models.values():
        model.to(options.device, getattr(torch, options.dtype))
        if options.channels_last:
            model.to(memory_format=torch.channels_last)
    measured = fxprune.measure_latency(
        list(models.values()), image, batch_size=options.batch, threads=options.threads, repeats=options.repeats
    )
    times = dict(zip(models, measured, strict=True))
    lines = [f"{spec} on {measured[0].device}, {measured[0]}"]
    for name in found:
        if name not in models:
            lines.append(f"  {name:<28} fails: {found[name]}")
            continue
        part, gain = flops[name] / flops["original"], times["original"].seconds / times[name].seconds
        lines.append(
            f"  {name:<28} {part:>7.3f} {times[name].seconds * 1e3:>10.2f} {times[name].spread * 1e3:>8.2f} "
            f"{gain:>9.2f} {gain * part:>7.2f}"
        )
    return lines


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(f"  {'':<28} {'FLOPs':>7} {'median ms':>10} {'IQR ms':>8} {'speed-up':>9} {'ideal':>7}")
    for spec in options.models:
        print("\n".join(rows(spec, options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

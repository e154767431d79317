"""Fashion-MNIST: which method of choosing channels keeps the most accuracy at the same FLOPs.

    python tests/benchmarks/fashion.py bases                 train the three unpruned nets again
    python tests/benchmarks/fashion.py compare               prune, measure, fine-tune, measure; resumable
    python tests/benchmarks/fashion.py nodata                prune without a single image, measure; resumable
    python tests/benchmarks/fashion.py report                tables and plots of all results

The unpruned nets are those in tests/benchmarks/bases, unless they were trained again, so that results of different days
are comparable. The results are kept in tests/benchmarks/results. The images are those of Debian's package
dataset-fashion-mnist, or of any folder with the four `*-ubyte.gz` files (--data).
"""

from __future__ import annotations

import copy
import functools
import gzip
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fashion_report import write_report
from nets import NETS
from peers import PEERS, prune_with_peer
from safetensors.torch import load_file, save_file
from shared import DOCS, append_row, parser_of, read_rows
from torch import Tensor, nn

import fxprune
from fxprune.training.finetune import finetune

DATA = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).resolve().parents[2] / "build" / "fashion"
BASES = Path(__file__).resolve().parent / "bases"
MEAN, STD = 0.2860, 0.3530
EXAMPLE = torch.zeros(1, 1, 28, 28)
# The options of `fxprune.prune` on the images that the others are compensated on.
CALLS: dict[str, dict[str, Any]] = {"joint": {}, "channels": {"depth": False}}
METHODS = (
    *CALLS,
    "dagger",
    "relevance",
    "surgeon",
    "l1",
    "l2",
    "batchnorm",
    "fpgm",
    "taylor",
    "fisher",
    "random",
    "uniform",
    *PEERS,
)
# Methods that read labelled images before they prune.
READS_LABELS = ("surgeon", "taylor", "fisher")
WITHOUT_DATA = ("surgeon", "dagger", "relevance", "l2")

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Normalised images (N, 1, 28, 28) and their labels (N,)."""

    images: Tensor
    labels: Tensor


@functools.cache
def read_split(folder: Path, prefix: str) -> Split:
    """Read `train` or `t10k` from the idx files."""
    images = np.frombuffer(
        gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
    )
    labels = np.frombuffer(
        gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
    )
    pixels = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    return Split((pixels - MEAN) / STD, torch.from_numpy(labels.astype(np.int64)))


class Batches:
    """Shuffled, augmented batches of a split: random shift by up to 2 pixels and horizontal flip.

    Each pass continues with the same generator, so a seed determines all epochs.
    """

    def __init__(self, split: Split, size: int = 128, seed: int = 0, shift: int = 2) -> None:
        self.split, self.size, self.shift = split, size, shift
        self.generator = torch.Generator().manual_seed(seed)
        self.padded = F.pad(split.images, (shift,) * 4, value=-MEAN / STD)

    def __len__(self) -> int:
        return len(self.split.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.split.labels), generator=self.generator)
        for start in range(0, len(self) * self.size, self.size):
            rows = order[start : start + self.size]
            yield self._augment(rows), self.split.labels[rows]

    def _augment(self, rows: Tensor) -> Tensor:
        n, span = len(rows), torch.arange(28)
        top, left = torch.randint(2 * self.shift + 1, (2, n, 1), generator=self.generator)
        columns = left + span
        flipped = torch.rand(n, 1, generator=self.generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
        return self.padded[rows[:, None, None], 0, (top + span)[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, size: int = 500) -> float:
    """The share of images that the model, in eval mode, labels correctly; it runs on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judged = copy.deepcopy(model).eval().to(device)
    pairs = zip(split.images.split(size), split.labels.split(size), strict=True)
    right = sum(int((judged(_fast(x.to(device))).argmax(1).cpu() == y).sum()) for x, y in pairs)
    return right / len(split.labels)


def _fast(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def train_base(name: str, data: Path, epochs: int, further: bool, seed: int = 0, highest_rate: float = 0.2) -> float:
    """Train one net with a one-cycle schedule and save the average of its last weights; returns test accuracy.

    `further` starts from the saved net, at half the learning rate and with another seed.
    """
    train, test = read_split(data, "train"), read_split(data, "t10k")
    torch.manual_seed(seed)
    model = load_base(name) if further else NETS[name]().to(memory_format=torch.channels_last)
    seed, highest_rate = (seed + 1, highest_rate / 2) if further else (seed, highest_rate)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    batches = Batches(train, seed=seed)
    # No weight decay for norms and biases: BatchNorm makes the scale of a convolution irrelevant, but not theirs.
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, highest_rate, total_steps=epochs * len(batches), pct_start=0.2
    )
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        for images, labels in batches:
            loss = F.cross_entropy(model(_fast(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item()
        seconds = time.perf_counter() - start
        right = accuracy(average.module, test)
        rate = len(batches) * batches.size / seconds
        figures = f"loss {total / len(batches):.4f}, test {right:.4f}, {rate:.0f} images/s"
        print(f"{name} epoch {epoch + 1}/{epochs}: {figures}", flush=True)
        OUT.mkdir(parents=True, exist_ok=True)
        weights = {key: value.contiguous() for key, value in average.module.state_dict().items()}
        facts = {"accuracy": f"{right:.4f}", "epochs": f"{epoch + 1}/{epochs}", "further": str(further)}
        save_file(weights, OUT / f"{name}.part", metadata=facts)
    # The old file stays until the new one is complete.
    (OUT / f"{name}.part").replace(OUT / f"{name}.safetensors")
    return right


def load_base(name: str) -> nn.Module:
    """A net in eval mode, with the weights that `bases` has saved, or else those of tests/benchmarks/bases."""
    model = NETS[name]()
    trained = OUT / f"{name}.safetensors"
    model.load_state_dict(load_file(trained if trained.exists() else BASES / trained.name))
    return model.to(memory_format=torch.channels_last).eval()


@dataclass(frozen=True)
class Trial:
    """One run: what is pruned, how, how far, and how it is fine-tuned after."""

    net: str
    method: str
    budget: float
    seed: int
    epochs: int
    images: int
    lr: float
    distill: float
    temperature: float
    gate_epochs: int

    @property
    def facts(self) -> Row:
        """What distinguishes this run from others; only Dagger learns gates."""
        facts = dict(vars(self))
        return facts if self.method == "dagger" else {**facts, "gate_epochs": 0}


def cut(trial: Trial, base: nn.Module, train: Split) -> nn.Module:
    """The pruned model, before compensation."""
    few = Split(train.images[:1024], train.labels[:1024])
    labelled = list(zip(few.images.split(128), few.labels.split(128), strict=True))
    if trial.method in PEERS:
        return prune_with_peer(trial.method, base, trial.budget, EXAMPLE, labelled)
    graph = fxprune.analyze(fxprune.trace(base, EXAMPLE))
    if trial.method == "dagger":
        batches = Batches(train, seed=trial.seed)
        chosen = fxprune.learn_gates(
            graph, batches, flops=trial.budget, epochs=trial.gate_epochs, seed=trial.seed, progress=False
        ).scores
    else:
        reads = {"data": labelled} if trial.method in READS_LABELS else {}
        chosen = fxprune.scores(graph, trial.method, seed=trial.seed, **reads)
    return fxprune.rewrite(graph, fxprune.make_plan(graph, chosen, flops=trial.budget))


def unlabelled(trial: Trial, train: Split) -> Tensor:
    """128 images to compensate on."""
    return train.images[torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(trial.seed))[:128]]


def run_trial(trial: Trial, data: Path) -> Row:
    """Prune, measure, compensate, measure, fine-tune, measure."""
    base, train, test = load_base(trial.net), read_split(data, "train"), read_split(data, "t10k")
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(100 + trial.seed))[: trial.images]
    train = Split(train.images[order], train.labels[order])
    began = time.perf_counter()
    few = unlabelled(trial, train)
    pruned = None if trial.method in CALLS else cut(trial, base, train)
    cut_at = time.perf_counter()
    if pruned is None:
        options = {"data": few, "seed": trial.seed, "progress": False, **CALLS[trial.method]}
        repaired: nn.Module | None = fxprune.prune(base, trial.budget, **options)
    else:
        repaired = None if trial.method in PEERS else fxprune.compensate(base, pruned, few)
    repaired_at = time.perf_counter()
    result = pruned if repaired is None else repaired
    assert result is not None
    flops = fxprune.count_flops(result, EXAMPLE)
    row: Row = {
        **trial.facts,
        "flops": flops,
        "share": flops / fxprune.count_flops(base, EXAMPLE),
        "base": accuracy(base, test),
        "raw": None if pruned is None else accuracy(pruned, test),
        "compensated": None if repaired is None else accuracy(repaired, test),
    }
    tuning = time.perf_counter()
    tuned = finetune(
        result,
        Batches(train, seed=trial.seed),
        teacher=base if trial.distill else None,
        distill_weight=trial.distill,
        temperature=trial.temperature,
        epochs=trial.epochs,
        lr=trial.lr,
        warmup=0.1,
        weight_decay=5e-4,
        seed=trial.seed,
        progress=False,
    )
    tuned_at = time.perf_counter()
    row["tuned"] = accuracy(tuned, test)
    row["seconds"] = {"cut": cut_at - began, "compensate": repaired_at - cut_at, "finetune": tuned_at - tuning}
    return row


def compare(trials: list[Trial], data: Path, results: Path, processes: int) -> None:
    """Run the trials that have no result yet; each result is written at once."""
    done = [{key: row.get(key) for key in trials[0].facts} for row in read_rows(results)]
    waiting = [trial for trial in trials if trial.facts not in done]
    print(f"{len(trials) - len(waiting)} of {len(trials)} runs are done already", flush=True)
    # Spawned, because a process that has used a GPU cannot be forked.
    starting = torch.multiprocessing.get_context("spawn")
    with starting.Pool(processes, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        for row in pool.imap_unordered(functools.partial(run_trial, data=data), waiting):
            append_row(results, row)
            figures = ", ".join(
                f"{key} {row[key]:.4f}" for key in ("share", "raw", "compensated", "tuned") if row[key] is not None
            )
            print(f"{row['net']} {row['method']} {row['budget']} seed {row['seed']}: {figures}", flush=True)


def without_data(nets: list[str], budget: float, seeds: list[int], data: Path, results: Path) -> None:
    """Prune without data; each result is written at once."""
    test = read_split(data, "t10k")
    done = [{key: row[key] for key in ("net", "method", "budget", "seed")} for row in read_rows(results)]
    for seed, net, method in itertools.product(seeds, nets, WITHOUT_DATA):
        facts = {"net": net, "method": method, "budget": budget, "seed": seed}
        if facts in done:
            continue
        base = load_base(net)
        began = time.perf_counter()
        pruned = fxprune.prune(base, budget, example_inputs=EXAMPLE, method=method, seed=seed)
        seconds = time.perf_counter() - began
        flops = fxprune.count_flops(pruned, EXAMPLE)
        row = {
            **facts,
            "share": flops / fxprune.count_flops(base, EXAMPLE),
            "base": accuracy(base, test),
            "compensated": accuracy(pruned, test),
            "seconds": seconds,
        }
        append_row(results, row)
        print(f"{net} {method} seed {seed}: {row['compensated']:.4f} of {row['base']:.4f}, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(dest="command", required=True)
    bases = commands.add_parser("bases")
    bases.add_argument("nets", nargs="*", default=list(NETS))
    bases.add_argument("--epochs", type=int, default=14)
    bases.add_argument("--further", action="store_true", help="train the saved nets for more epochs")
    comparing = commands.add_parser("compare")
    comparing.add_argument("--nets", nargs="*", default=list(NETS))
    comparing.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    comparing.add_argument("--budgets", nargs="*", type=float, default=[0.5, 0.25])
    comparing.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    comparing.add_argument("--epochs", type=int, default=4, help="epochs of fine-tuning")
    comparing.add_argument("--images", type=int, default=60000, help="training images that a run may use")
    comparing.add_argument("--lr", type=float, default=0.05)
    comparing.add_argument("--distill", type=float, default=0.5, help="weight of the distillation loss")
    comparing.add_argument("--temperature", type=float, default=4.0, help="temperature of the distillation")
    comparing.add_argument("--processes", type=int, default=1, help="runs at a time")
    comparing.add_argument("--gate-epochs", type=int, default=1)
    alone = commands.add_parser("nodata")
    alone.add_argument("--nets", nargs="*", default=list(NETS))
    alone.add_argument("--budget", type=float, default=0.5)
    alone.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    reporting = commands.add_parser("report")
    for command in (comparing, reporting):
        command.add_argument("--results", type=Path, default=OUT / "compare.jsonl")
    for command in (alone, reporting):
        command.add_argument("--nodata-results", type=Path, default=OUT / "nodata.jsonl")
    reporting.add_argument("--out", type=Path, default=DOCS / "fashion")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "bases":
        for name in options.nets:
            train_base(name, options.data, options.epochs, options.further)
    elif options.command == "compare":
        tuning = (options.epochs, options.images, options.lr, options.distill, options.temperature)
        # Seeds outermost: a run that is cut short has compared all methods, on fewer seeds.
        points = itertools.product(options.seeds, options.nets, options.budgets, options.methods)
        trials = [
            Trial(net, method, budget, seed, *tuning, options.gate_epochs) for seed, net, budget, method in points
        ]
        compare(trials, options.data, options.results, options.processes)
    elif options.command == "nodata":
        without_data(options.nets, options.budget, options.seeds, options.data, options.nodata_results)
    else:
        write_report(read_rows(options.results), read_rows(options.nodata_results), options.out)


if __name__ == "__main__":
    main()

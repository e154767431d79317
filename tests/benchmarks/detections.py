"""How many of its own detections a pruned detector keeps, on photographs that nothing has seen, without any training.

    pip install nudenet onnx onnx2torch scikit-image scikit-learn timm
    apt-get install opencv-doc mate-backgrounds plasma-workspace-wallpapers
    python tests/benchmarks/detections.py [--budgets 0.9,0.8,0.7] [--ways data,none,bare]

The model is NudeNet's, a YOLOv8n with trained weights. Half of the scenes of `photographs.py` give 128 crops, those of
the others are judged. A detection counts as kept if the pruned model has one of the same class with an overlap (IoU) of
more than a half; F1 counts those that it has beside. "data" gives it the crops, "none" gives it nothing, and "bare" is
cut by relevance and not compensated. Rows are also written as JSON lines.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from photographs import CALIBRATION, FOLDERS, crops, scenes
from PIL import Image
from shared import append_row, parser_of, settle
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, box_iou
from torchvision.transforms.functional import to_tensor

import fxprune

SIDE, PER_SCENE = 320, 3
LEAST_SCORE, OVERLAP, SAME = 0.25, 0.45, 0.5
WAYS: dict[str, dict[str, Any]] = {
    "data": {},
    "none": {},
    "bare": {"method": "relevance", "compensate": False},
}
# Boxes (n, 4) and classes (n,) of one picture.
_Found: TypeAlias = "tuple[Tensor, Tensor]"


def trained_model() -> nn.Module:
    """NudeNet's detector, as its package has it."""
    import onnx
    import onnx2torch

    package = importlib.util.find_spec("nudenet")
    assert package is not None
    assert package.origin is not None
    return onnx2torch.convert(onnx.load(Path(package.origin).parent / "320n.onnx")).eval()


def photographs(folders: list[str]) -> tuple[Tensor, Tensor]:
    """The crops to compensate on and those to judge by."""
    by_scene = scenes(folders)
    names = np.random.default_rng(0).permutation(sorted(by_scene)).tolist()
    half = len(names) // 2
    cut = {name: [c for group in zip(*map(crops, by_scene[name]), strict=True) for c in group] for name in names}
    fitted = [cut[name][k] for k in range(4) for name in names[:half] if k < len(cut[name])][:CALIBRATION]
    judged = [crop for name in names[half:] for crop in cut[name][:PER_SCENE]]
    return _pixels(fitted), _pixels(judged)


def _pixels(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([to_tensor(picture.convert("RGB").resize((SIDE, SIDE))) for picture in pictures])


def detections(model: nn.Module, pictures: Tensor) -> list[_Found]:
    """What a model finds in each picture, after non-maximum suppression."""
    found = []
    for part in pictures.split(16):
        with torch.no_grad():
            outputs = model(part)
        for rows in outputs.mT:
            scores, classes = rows[:, 4:].max(1)
            sure = scores > LEAST_SCORE
            boxes = box_convert(rows[sure, :4], "cxcywh", "xyxy")
            kept = batched_nms(boxes, scores[sure], classes[sure], OVERLAP)
            found.append((boxes[kept], classes[sure][kept]))
    return found


def f1(wanted: list[_Found], got: list[_Found]) -> float:
    """The harmonic mean of precision and recall; each detection is found once at most."""
    hits = 0
    for (boxes, classes), (others, their_classes) in zip(wanted, got, strict=True):
        overlaps = box_iou(boxes, others) * (classes[:, None] == their_classes)
        for row in overlaps:
            if len(row) and row.max() > SAME:
                hits += 1
                overlaps[:, row.argmax()] = 0
    total = sum(len(boxes) for found in (wanted, got) for boxes, _ in found)
    return 2 * hits / max(total, 1)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--budgets", default="0.9,0.8,0.7")
    parser.add_argument("--ways", default="data,none,bare")
    parser.add_argument("--output", type=Path, default=Path("build/detections.jsonl"))
    given = parser.parse_args()
    settle()
    model, (fitted, judged) = trained_model(), photographs(given.folders)
    wanted = detections(model, judged)
    count = sum(len(boxes) for boxes, _ in wanted)
    print(f"{len(fitted)} crops to compensate on, {count} detections on {len(judged)} crops of other scenes")
    for budget in map(float, given.budgets.split(",")):
        for way in given.ways.split(","):
            data = [fitted] if way == "data" else None
            pruned = fxprune.prune(model, budget, example_inputs=fitted[:1], data=data, progress=False, **WAYS[way])
            row = {"budget": budget, "way": way, "f1": round(f1(wanted, detections(pruned, judged)), 3), "of": count}
            print(row, flush=True)
            append_row(given.output, row)


if __name__ == "__main__":
    main()

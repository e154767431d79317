"""Photographs for benchmarks: crops to prune with, and crops of other scenes to judge by.

    pip install scikit-image scikit-learn timm
    apt-get install opencv-doc mate-backgrounds plasma-workspace-wallpapers

Pictures are those of scikit-image and scikit-learn and whatever lies in the folders given (default: where Debian's
packages put theirs). Half of the scenes give 128 crops to compensate on, the others the crops that are judged, but for
those of scikit-image, which fxprune takes where there is no data; no picture of the judged scenes is used for pruning.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

FOLDERS = ("/usr/share/doc/opencv-doc/examples", "/usr/share/backgrounds", "/usr/share/wallpapers")
CALIBRATION = 128
# Of those that fxprune takes where there is no data.
DEFAULT = ("astronaut", "camera", "chelsea", "clock", "coffee", "coins", "rocket", "brick", "grass", "gravel")
SMALLEST, LONGEST = 200, 1024


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

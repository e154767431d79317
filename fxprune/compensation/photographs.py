"""Photographs as samples for models that take images: crops of those in scikit-image, in the scale of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PHOTOGRAPHS", "SCALES", "Scale", "crops"]

# What skimage.data has without a download, and the left side of a stereo pair.
_NAMES = (
    "astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "clock", "grass", "brick", "gravel", "moon",
    "retina", "immunohistochemistry", "hubble_deep_field",
)  # fmt: skip
PHOTOGRAPHS = len(_NAMES) + 1
"""The number of photographs; crop k is of photograph k modulo this."""
# The shortest side of a crop, as a fraction of the longest possible. Not tuned.
_SMALLEST = 0.3


@dataclass(frozen=True)
class Scale:
    """The scale of pixel values in a model's input: (value - mean) / std of values from 0 to 1.

    Attributes:
        name: for messages.
        mean, std: one for each channel, or one for all.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels of values from 0 to 1 in this scale: (samples, channels, rows, columns)."""
        mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (self.mean, self.std))
        if pixels.shape[1] == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        return (pixels - mean) / std


SCALES = (
    Scale("the mean and deviation of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Scale("from -1 to 1", (0.5,), (0.5,)),
    Scale("from 0 to 1", (0.0,), (1.0,)),
    Scale("from 0 to 255", (0.0,), (1 / 255,)),
)
"""The scales in use."""


def crops(count: int, channels: int, size: Sequence[int], seed: int = 0) -> Tensor:
    """Crops of photographs (count, channels, rows, columns), of values from 0 to 1.

    First each photograph as a whole, as far as its shape allows, then random parts of them; half of all mirrored.

    Args:
        count: how many.
        channels: 3 for colour, 1 for grey.
        size: rows and columns.
        seed: draws the parts.
    """
    random, pictures = np.random.default_rng(seed), _pictures()
    made = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        largest = min(picture.shape[1] / size[0], picture.shape[2] / size[1])
        part = largest * (1.0 if number < len(pictures) else random.uniform(_SMALLEST, 1.0))
        rows, columns = (max(round(part * n), 1) for n in size)
        top, left = (
            int(random.integers(0, n - cut + 1)) for n, cut in zip(picture.shape[1:], (rows, columns), strict=True)
        )
        crop = picture[None, :, top : top + rows, left : left + columns]
        crop = F.interpolate(crop, tuple(size), mode="bilinear", align_corners=False, antialias=True)
        made.append(crop.flip(-1) if random.random() < 0.5 else crop)
    batch = torch.cat(made).clamp(0.0, 1.0)
    return batch if channels == batch.shape[1] else _grey(batch)


def _grey(batch: Tensor) -> Tensor:
    """The luminance, as ITU-R BT.601 weighs red, green and blue."""
    return (batch * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


@cache
def _pictures() -> tuple[Tensor, ...]:
    """The photographs (3, rows, columns), of values from 0 to 1."""
    arrays = [getattr(skimage.data, name)() for name in _NAMES]
    arrays.append(skimage.data.stereo_motorcycle()[0])  # type: ignore[no-untyped-call]
    coloured = [np.repeat(array[..., None], 3, -1) if array.ndim == 2 else array[..., :3] for array in arrays]
    return tuple(torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255 for array in coloured)

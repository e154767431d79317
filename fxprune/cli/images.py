"""Images from folders and from datasets of torchvision, as batches for a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fxprune.errors import FxpruneError

__all__ = ["Data", "Download", "Mean", "Preprocessing", "Std", "open_images", "preprocessing_for"]

_FORMS = "give imagefolder:DIR, or torchvision:NAME:ROOT"
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="images: imagefolder:DIR (one folder for each class, or images without labels) or torchvision:NAME:ROOT",
    ),
]
Download = Annotated[bool, typer.Option("--download", help="let torchvision download the dataset")]
Mean = Annotated[str | None, typer.Option(metavar="M,M,M", help="mean of each color in [0, 1] (default: the model's)")]
Std = Annotated[
    str | None, typer.Option(metavar="S,S,S", help="standard deviation of each color (default: the model's)")
]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
# Images of fewer pixels are scaled to the input size, not cropped to it, as is usual for small images.
_CROPPED = 128


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input of the model."""

    channels: int
    size: tuple[int, int]
    resized: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def transform(self, augment: bool = False) -> Callable[[Any], Tensor]:
        """The function from an image to a tensor (channels, height, width); `augment` crops and flips at random."""
        v1 = _torchvision("transforms")
        mode = v1.InterpolationMode(self.interpolation)
        if augment:
            steps = [v1.RandomResizedCrop(self.size, scale=(0.35, 1.0), interpolation=mode), v1.RandomHorizontalFlip()]
        else:
            steps = [v1.Resize(self.resized, interpolation=mode), v1.CenterCrop(self.size)]
        to_tensor = [_Convert("L" if self.channels == 1 else "RGB"), *steps, v1.ToTensor()]
        return v1.Compose([*to_tensor, v1.Normalize(self.mean, self.std)])  # type: ignore[no-any-return]


def preprocessing_for(
    model: nn.Module, inputs: Sequence[Any], mean: str | None = None, std: str | None = None
) -> Preprocessing:
    """The preprocessing in a model's config, or the usual one of ImageNet, for the size of the inputs.

    Raises:
        FxpruneError: the model takes something other than one image.
    """
    shapes = [tuple(x.shape) for x in inputs if isinstance(x, Tensor)]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        raise FxpruneError(
            f"--data: the model takes inputs of shapes {[list(shape) for shape in shapes]}, but images need a model "
            "with one input (N, 1 or 3, height, width). For other data use fxprune.prune(data=...) in Python"
        )
    _, channels, height, width = shapes[0]
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    # Models of color images usually expect ImageNet's statistics; for gray images there is no custom.
    usual = _IMAGENET if channels == 3 else ((0.5,), (0.5,))
    means, stds = config.get("mean", usual[0]), config.get("std", usual[1])
    if len(means) != channels:
        means, stds = usual
    share = float(config.get("crop_pct") or 0.875) if min(height, width) >= _CROPPED else 1.0
    resized = round(min(height, width) / share) if height == width else (round(height / share), round(width / share))
    return Preprocessing(
        channels=channels,
        size=(height, width),
        resized=resized if isinstance(resized, tuple) else int(resized),
        mean=tuple(means) if mean is None else _numbers(mean, channels, "--mean"),
        std=tuple(stds) if std is None else _numbers(std, channels, "--std"),
        interpolation=config.get("interpolation", "bilinear"),
    )


def open_images(
    source: str,
    how: Preprocessing,
    *,
    batch_size: int = 32,
    shuffle: bool = True,
    augment: bool = False,
    train: bool = True,
    download: bool = False,
    workers: int = 0,
    seed: int = 0,
    option: str = "--data",
) -> tuple[DataLoader[Any], int | None]:
    """A loader of batches, and the number of classes, or None if that is unknown or there are no labels.

    Raises:
        FxpruneError: there is no such data, or it holds no images.
    """
    transform = how.transform(augment)
    kind, separator, rest = source.partition(":")
    classes: int | None
    if separator and kind == "torchvision":
        dataset, classes = _from_torchvision(rest, transform, train, download, option)
    elif kind == "imagefolder" or not separator or Path(source).is_dir():
        folder = _Folder(Path(rest if kind == "imagefolder" else source), transform, option)
        dataset, classes = folder, len(folder.classes) or None
    else:
        raise FxpruneError(f"{option}: {source!r} is not a source of images: {_FORMS}")
    generator = torch.Generator().manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, generator=generator, num_workers=workers
    )
    return loader, classes


class _Folder(Dataset[Any]):
    """The images of a folder: each subfolder is a class; images directly in the folder have no labels."""

    def __init__(self, root: Path, transform: Callable[[Any], Tensor], option: str) -> None:
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise FxpruneError(f"{option}: {root} {what}: {_FORMS}")
        self.transform, self.option = transform, option
        folders = sorted(each for each in root.iterdir() if each.is_dir())
        found = {folder.name: _images(folder) for folder in folders}
        self.classes = [name for name, files in found.items() if files]
        if len(self.classes) > 1 and {name.lower() for name in self.classes} <= _PARTS:
            raise FxpruneError(
                f"{option}: {root} holds the parts {' and '.join(self.classes)} of a dataset: give one of them, such "
                f"as imagefolder:{root / self.classes[0]}"
            )
        flat = sorted(each for each in root.iterdir() if each.suffix.lower() in _SUFFIXES and each.is_file())
        if flat:
            self.classes = []
        self.files = flat or [file for name in self.classes for file in found[name]]
        self.labels = [number for number, name in enumerate(self.classes) for _ in found[name]]
        if not self.files:
            raise FxpruneError(f"{option}: {root} has no images (files that end in {', '.join(sorted(_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        file = self.files[index]
        image = _opened(file, self.option)
        return (self.transform(image), self.labels[index]) if self.labels else self.transform(image)


@dataclass(frozen=True)
class _Convert:
    """Converts an image to the color mode of the model."""

    mode: str

    def __call__(self, image: Any) -> Any:
        return image.convert(self.mode)


def _images(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.suffix.lower() in _SUFFIXES and each.is_file())


def _opened(file: Path, option: str) -> Any:
    _torchvision("transforms")
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise FxpruneError(f"{option}: {file} cannot be read as an image: {error}; repair or remove it") from error


def _from_torchvision(
    spec: str, transform: Callable[[Any], Tensor], train: bool, download: bool, option: str
) -> tuple[Dataset[Any], int | None]:
    name, _, root = spec.partition(":")
    datasets = _torchvision("datasets")
    if name not in datasets.__all__ or not isinstance(getattr(datasets, name), type):
        close = difflib.get_close_matches(name, datasets.__all__, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise FxpruneError(f"{option}: torchvision has no dataset {name!r}{hint}")
    kind = getattr(datasets, name)
    takes = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"transform": transform}
    if "root" in takes:
        if not root:
            raise FxpruneError(
                f"{option}: {name} needs a folder: give torchvision:NAME:ROOT, such as torchvision:{name}:data"
            )
        arguments["root"] = root
    if "train" in takes:
        arguments["train"] = train
    elif "split" in takes:
        arguments["split"] = "train" if train else "test" if "test" in str(inspect.getdoc(kind)) else "val"
    if download and "download" in takes:
        arguments["download"] = True
    try:
        dataset = kind(**arguments)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split()).removesuffix(" You can use download=True to download it").rstrip(".")
        more = "; give --download to download it" if "download" in takes and not download else ""
        place = f" in {root}" if root else ""
        raise FxpruneError(f"{option}: {name} cannot be opened{place}: {text}{more}") from error
    known = getattr(dataset, "classes", None)
    return dataset, len(known) if known else None


def _numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, count):
        raise typer.BadParameter(
            f"{text!r} is not {count} numbers, such as {','.join(['0.5'] * count)}", param_hint=option
        )
    return values if len(values) == count else values * count


def _torchvision(part: str) -> Any:
    try:
        import torchvision
    except ImportError as error:
        raise FxpruneError(f"--data needs torchvision ({error}): pip install 'fxprune[torchvision]'") from error
    return getattr(torchvision, part)

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command_line import MODEL, PRUNE, Small, assert_fails

from fxprune.cli.images import open_images, preprocessing_for
from fxprune.errors import FxpruneError


def test_images_become_inputs_of_the_model(images: Path) -> None:
    how = preprocessing_for(Small(), [torch.zeros(1, 3, 8, 6)])
    loader, classes = open_images(str(images), how, batch_size=4, shuffle=False)
    batch, labels = next(iter(loader))
    assert classes == 5
    assert batch.shape == (4, 3, 8, 6)
    assert labels.tolist() == [0, 0, 0, 1]
    again = preprocessing_for(Small(), [torch.zeros(1, 1, 8, 8)], mean="0.2", std="0.3")
    assert (again.mean, again.std) == ((0.2,), (0.3,))


def test_a_dataset_of_torchvision_is_opened_by_name() -> None:
    pytest.importorskip("torchvision")
    how = preprocessing_for(Small(), [torch.zeros(1, 3, 8, 8)])
    loader, classes = open_images("torchvision:FakeData", how, batch_size=4)
    batch, labels = next(iter(loader))
    assert classes is None
    assert batch.shape == (4, 3, 8, 8)
    assert len(labels) == 4


def test_models_of_other_inputs_are_refused() -> None:
    with pytest.raises(FxpruneError, match=r"takes inputs of shapes \[\[1, 7\]\], but images need"):
        preprocessing_for(Small(), [torch.zeros(1, 7)])


@pytest.mark.parametrize("verb", ["prune", "finetune"])
def test_the_parts_of_a_dataset_are_not_taken_for_classes(verb: str, small: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "train")
    shutil.copytree(images, tmp_path / "val")
    subject = PRUNE[1:] if verb == "prune" else (small, "--model", MODEL)
    message = f"give one of them, such as imagefolder:{tmp_path / 'train'}"
    assert_fails(verb, *subject, "--data", tmp_path, "-o", tmp_path / "tuned.safetensors", message=message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/none", "{tmp}/none does not exist: give imagefolder:DIR, or torchvision:NAME:ROOT"),
        ("{tmp}/false/false.png", "false.png is not a folder"),
        ("imagefolder:{tmp}/empty", "{tmp}/empty has no images"),
        ("{tmp}/false", "false.png cannot be read as an image"),
        ("web:pages", "'web:pages' is not a source of images"),
        ("torchvision:FashonMNIST:x", "torchvision has no dataset 'FashonMNIST'; did you mean FashionMNIST"),
        ("torchvision:FashionMNIST", "FashionMNIST needs a folder: give torchvision:NAME:ROOT"),
        ("torchvision:FashionMNIST:{tmp}", "give --download"),
    ],
)
def test_sources_without_images_are_refused(tmp_path: Path, source: str, message: str) -> None:
    pytest.importorskip("torchvision")
    for name in ("empty", "false"):
        (tmp_path / name).mkdir()
    (tmp_path / "false" / "false.png").write_text("not an image")
    source, message = (text.replace("{tmp}", str(tmp_path)) for text in (source, message))
    assert_fails(*PRUNE, "--data", source, "-o", tmp_path / "x.safetensors", message=message)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("text", ["a,b,c", "0.1,0.2"])
def test_a_mean_is_one_number_or_one_for_each_color(text: str, images: Path, tmp_path: Path) -> None:
    options = ("--data", images, "--mean", text, "-o", tmp_path / "x.safetensors")
    message = f"--mean: '{text}' is not 3 numbers, such as 0.5,0.5,0.5; see"
    assert_fails(*PRUNE, *options, message=message, code=2)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import MODEL, Small, assert_fails, run

import fxprune


def test_it_trains_and_measures_the_accuracy(small: Path, images: Path, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    out = tmp_path / "tuned.safetensors"
    data = ("--data", f"imagefolder:{images}", "--eval-data", images, "--batch-size", "8", "--mean", "0.5", "--augment")
    teacher = ("--model", MODEL, "--weights", weights)
    try:
        result = run("finetune", small, *data, *teacher, "-o", out, "--epochs", "2", "--json")
    finally:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    assert result.exit_code == 0, result.output
    assert 0 <= json.loads(result.stdout)["accuracy_before"] <= 1
    epochs = json.loads(result.stdout)["epochs"]
    assert [epoch["number"] for epoch in epochs] == [1, 2]
    assert all(0 <= epoch["evaluation"] <= 1 for epoch in epochs)
    tuned, before = fxprune.load(out, original=Small()), fxprune.load(small, original=Small())
    assert not torch.equal(tuned.head.weight, before.head.weight)


def test_images_without_labels_need_a_teacher(small: Path, images: Path, tmp_path: Path) -> None:
    options = ("--data", images / "a", "-o", tmp_path / "tuned.safetensors")
    message = "--data has no labels: give a folder with one folder for each class, or give --weights or --pretrained"
    assert_fails("finetune", small, "--model", MODEL, *options, message=message)
    assert not list(tmp_path.iterdir())


def test_more_classes_than_outputs_are_refused(small: Path, images: Path, tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / name).symlink_to(images / name.replace("f", "a"))
    options = ("--data", tmp_path, "-o", tmp_path / "tuned.safetensors")
    message = "--data has 6 classes, but the model has 5 outputs: give data with at most 5"
    assert_fails("finetune", small, "--model", MODEL, *options, message=message)

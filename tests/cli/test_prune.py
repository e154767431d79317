from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import MODEL, PRUNE, Small, assert_fails, run
from safetensors.torch import load_file, save_file

import fxprune
from fxprune.errors import CannotScoreError
from fxprune.provenance import pruning_notes
from fxprune.reporting.facts import Certificate


def test_the_result_is_a_file_that_load_reads(small: Path) -> None:
    loaded = fxprune.load(small, original=Small())
    plan = fxprune.plan_of(loaded)
    assert plan.flops <= plan.flops_target == plan.flops_before // 2
    assert loaded(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_without_data_it_compensates_on_synthetic_images_unless_told_not_to(tmp_path: Path, small: Path) -> None:
    result = run(*PRUNE, "-o", tmp_path / "x.safetensors", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["compensated"]
    assert said["error"] <= 1e-9
    assert said["flops"]["after"] <= said["flops_target"]
    assert all(0 < group["channels"]["after"] <= group["channels"]["before"] for group in said["groups"])
    assert list(said["seconds"]) == ["load", "prune", "verify", "save"]
    assert not pruning_notes(fxprune.load(small, original=Small())).compensated


def test_the_given_weights_are_cut_and_folders_made(tmp_path: Path) -> None:
    model = Small()
    path = tmp_path / "trained.safetensors"
    save_file(model.state_dict(), path)
    out = tmp_path / "made" / "x.safetensors"
    options = ("--weights", path, "--no-compensate", "--method", "l1", "--ignore", "first", "--flops", "0.7")
    result = run(*PRUNE, *options, "--code", tmp_path / "model.py", "-o", out)
    assert result.exit_code == 0, result.output
    assert "FLOPs" in result.stdout
    cut = load_file(out)
    assert torch.equal(cut["first.weight"], model.first.weight)
    assert len(cut["second.weight"]) < 16
    compile((tmp_path / "model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize("flat", [False, True])
def test_images_may_have_labels_or_not(tmp_path: Path, images: Path, flat: bool) -> None:
    source = images / "a" if flat else f"imagefolder:{images}"
    options = ("--samples", "8", "--method", "taylor", "--no-compensate", "--no-verify")
    result = run(*PRUNE, "--data", source, *options, "-o", tmp_path / "x.safetensors")
    assert result.exit_code == 0, result.output
    assert "not used" not in result.stderr


def test_labels_of_other_classes_than_the_models_are_not_used(tmp_path: Path, images: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in "ab":
        (tmp_path / "two" / name).symlink_to(images / name)
    options = ("--method", "taylor", "--no-compensate", "--no-verify", "-o", tmp_path / "x.safetensors")
    result = run(*PRUNE, "--data", tmp_path / "two", *options)
    assert result.exit_code == 0, result.output
    assert "note: labels are not used: the data has 2 classes, the model 5\n" in result.stderr


@pytest.mark.parametrize("download", [False, True])
def test_datasets_of_torchvision_are_opened(download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    asked: list[bool] = []

    class Photos(datasets.FakeData):  # type: ignore[misc, name-defined]
        def __init__(self, root: str, transform: Any = None, download: bool = False) -> None:
            asked.append(download)
            super().__init__(6, (3, 8, 8), 5, transform)

    monkeypatch.setattr(datasets, "CIFAR10", Photos)
    options = ("--data", f"torchvision:CIFAR10:{tmp_path}", *(["--download"] if download else []))
    result = run(*PRUNE, *options, "-o", tmp_path / "small.safetensors")
    assert result.exit_code == 0, result.output
    assert asked == [download]


def test_warnings_of_fxprune_are_notes_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CannotScoreError("too small")

    monkeypatch.setattr("fxprune.api.Compensation.of", refuse)
    result = run(*PRUNE, "-o", tmp_path / "small.safetensors")
    assert result.exit_code == 0, result.output
    assert "note: cut by relevance and not compensated: too small\n" in result.stderr


def test_a_result_that_differs_from_the_zero_masked_original_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.cli.prune.certify", lambda *_: Certificate(0.5, "outputs"))
    out = tmp_path / "x.safetensors"
    message = "not saved: the result differs from the zero-masked original by 5.0e-01."
    assert_fails(*PRUNE, "--no-compensate", "-o", out, message=message)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MODEL], "no example inputs"),
        ([*PRUNE[1:], "--flops", "0"], "flops (=0.0) must be positive"),
        ([*PRUNE[1:], "--flops", "nan"], "flops (=nan) must be positive"),
        ([*PRUNE[1:], "--flops", "0.001"], "cannot be reached: the lowest is"),
        ([*PRUNE[1:], "--memory", "0"], "memory (=0.0) must be positive"),
        ([*PRUNE[1:], "--memory", "0.001"], "bytes of activations at a time (0.1%) cannot be reached"),
        ([*PRUNE[1:], "--latency", "2"], "latency (=2.0) must be a fraction"),
        ([*PRUNE[1:], "--latency", "fast"], "latency (='fast') must be a fraction"),
        ([*PRUNE[1:], "--ignore", "nothing.*"], "ignore pattern 'nothing.*' matches no module"),
        ([*PRUNE[1:], "--method", "magic"], "method (='magic')"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_fails("prune", *arguments, "-o", tmp_path / "x.safetensors", message=message)
    assert not list(tmp_path.iterdir())


def test_a_multiple_is_a_number_or_auto(tmp_path: Path) -> None:
    message = "--round-to: '0' is neither a whole number of at least 1 nor 'auto'; see"
    assert_fails(*PRUNE, "--round-to", "0", "-o", tmp_path / "x.safetensors", message=message, code=2)
    result = run(*PRUNE, "--round-to", "auto", "--no-compensate", "-o", tmp_path / "x.safetensors")
    assert result.exit_code == 0, result.output

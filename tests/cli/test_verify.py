from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from command_line import MODEL, Small, assert_fails, run

import fxprune
from fxprune.provenance import pruning_notes, set_pruning_notes


def test_outputs_are_compared_with_the_weights_of_the_original_and_else_the_structure(
    small: Path, weights: Path
) -> None:
    same = run("verify", small, "--model", MODEL, "--weights", weights, "--exact", "--json")
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["of"] == "outputs"
    other = run("verify", small, "--model", MODEL)
    assert other.exit_code == 0, other.output
    assert other.stdout.startswith("verified: structure, largest relative difference ")
    exact = run("verify", small, "--model", MODEL, "--exact")
    assert exact.exit_code == 1
    assert "its weights are not slices of the original's" in exact.stderr


def test_damaged_weights_fail(small: Path, tmp_path: Path) -> None:
    broken = fxprune.load(small, original=Small())
    set_pruning_notes(broken, replace(pruning_notes(broken), compensated=("by hand",)))
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    path = tmp_path / "broken.safetensors"
    fxprune.save(broken, path)
    message = "does not equal its zero-masked original: another model, or damaged weights (compared: structure"
    assert_fails("verify", path, "--model", MODEL, message=message)


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert_fails("verify", tmp_path / "none.safetensors", message="there is no file")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    assert_fails("verify", tmp_path / "bad.pth", message="cannot be read as safetensors")

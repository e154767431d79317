from __future__ import annotations

import json
from pathlib import Path

from command_line import MODEL, assert_fails, run


def test_it_is_printed_and_written_as_a_page(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("report", small, "--model", MODEL, "-o", page, "--no-measure")
    assert result.exit_code == 0, result.output
    assert "groups of channels" in result.stdout
    assert "small.safetensors" in page.read_text(encoding="utf-8")
    said = json.loads(run("report", small, "--model", MODEL, "--no-measure", "--json").stdout)
    assert {layer["name"] for layer in said["layers"]} == {"first", "norm", "second", "head"}


def test_the_original_must_be_known_and_be_the_right_one(small: Path) -> None:
    assert_fails("report", small, message="--model MODEL")
    assert_fails("report", small, "--model", "torch.nn:ReLU", message="another model")

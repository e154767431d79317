from __future__ import annotations

import json
from pathlib import Path

from command_line import MODEL, assert_fails, run


def test_an_archive_is_written(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.pt2"
    result = run("export", small, "--model", MODEL, "-o", out, "--static-batch", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["error"] <= 1e-3
    assert out.is_file()


def test_only_names_of_archives_and_of_onnx_are_taken(small: Path, tmp_path: Path) -> None:
    message = f"--output: '{tmp_path}/x.bin' must end in .onnx or .pt2; see"
    assert_fails("export", small, "--model", MODEL, "-o", tmp_path / "x.bin", message=message, code=2)

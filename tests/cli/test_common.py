from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from command_line import MODEL, PRUNE, assert_fails, run

from fxprune.errors import FxpruneError


@pytest.mark.parametrize(
    ("output", "message"),
    [("file.pth/x.safetensors", "is a file, not a folder"), ("folder.safetensors", "is a folder; give a file name")],
)
@pytest.mark.parametrize("verb", ["prune", "export"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    verb: str, output: str, message: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.cli.prune.build", lambda *_: pytest.fail("the model was built"))
    monkeypatch.setattr("fxprune.cli.export.load_pruned", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file.pth").write_text("something")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    command = PRUNE if verb == "prune" else ("export", small, "--model", MODEL)
    path = output if verb == "prune" else output.replace(".safetensors", ".onnx")
    assert_fails(*command, "-o", tmp_path / path, message=message)


def test_a_folder_without_permission_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("fxprune.cli.prune.build", lambda *_: pytest.fail("the model was built"))
    assert_fails(*PRUNE, "-o", tmp_path / "x.safetensors", message="you have no permission to write in")


@pytest.mark.parametrize("verb", ["prune", "report"])
def test_an_interrupt_while_writing_leaves_the_previous_file(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    path = tmp_path / ("x.safetensors" if verb == "prune" else "x.html")
    path.write_text("before")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxprune.files.writing.os.fsync", interrupted)
    command = (*PRUNE, "--no-compensate") if verb == "prune" else ("report", small, "--model", MODEL, "--no-measure")
    assert_fails(*command, "-o", path, message="interrupted; no file was left incomplete", code=130)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_debug_lets_the_traceback_through() -> None:
    assert isinstance(run("inspect", "nothing", "--debug").exception, FxpruneError)


def test_an_unexpected_error_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("fxprune.cli.inspect.analyze", fail)
    message = "fxprune: RuntimeError: two lines (an unexpected error; --debug shows where)\n"
    assert_fails("inspect", *PRUNE[1:], message=message)

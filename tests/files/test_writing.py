"""A file is whole at any moment."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import pruned_block
from safetensors import safe_open
from safetensors.torch import load_file

import fxprune
from fxprune import FxpruneError
from fxprune.files.writing import replace_file, write_tensors


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_write_that_fails_midway_leaves_the_previous_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    content = (tmp_path / "small").read_bytes()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*(("pathlib.Path.replace", full) if where == "replace" else (os, where, full)))
        with pytest.raises(FxpruneError, match=r"cannot be written: .*No space left.*previous one is whole"):
            fxprune.save(pruned_block(1)[1], tmp_path / "small")
    assert [entry.name for entry in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small").read_bytes() == content


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    (tmp_path / "usual").touch()
    assert stat.S_IMODE((tmp_path / "small").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_tensors_that_share_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "new" / "t", {"whole": tensor, "part": tensor[1:], "turned": tensor.T}, {"k": "v"}, "file")
    read = load_file(tmp_path / "new" / "t")
    assert torch.equal(read["part"], tensor[1:])
    assert torch.equal(read["turned"], tensor.T)
    with safe_open(tmp_path / "new" / "t", framework="pt") as file:
        assert file.metadata() == {"k": "v"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FxpruneError, match=r"^page '.*page\.html' cannot be written: "):
        replace_file(tmp_path / "file" / "page.html", b"x", "page")

"""Files that the verbs read: weights, a pruned model and images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import PRUNE, Small, run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "trained.pth"
    torch.save(Small().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    path = tmp_path_factory.mktemp("pruned") / "small.safetensors"
    result = run(*PRUNE, "--weights", weights, "--no-compensate", "-o", path)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of three images, and in each folder a file that is not an image."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    for k, name in enumerate("abcde"):
        (root / name).mkdir()
        (root / name / "notes.txt").write_text("not an image")
        for number in range(3):
            image.new("RGB", (12, 10), (k * 50, number * 80, 99)).save(root / name / f"{number}.png")
    return root

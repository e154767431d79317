"""Runs the command line in tests, on a small model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from typer.testing import CliRunner, Result

from fxprune.cli import app

__all__ = ["MODEL", "PRUNE", "Small", "assert_fails", "run"]


class Small(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


MODEL = f"{__name__}:Small"
PRUNE = ("prune", MODEL, "--input", "1,3,8,8")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def assert_fails(*arguments: str | Path, message: str, code: int = 1) -> None:
    """The command exits with this code, prints nothing, and its error is one line that contains the message."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("fxprune: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not result.stdout

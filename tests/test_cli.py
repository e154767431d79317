from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from fxprune.cli import app

SHAPE = "1,3,8,8"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        return self.head(x.mean((2, 3)))


MODEL = f"{__name__}:Small"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_prune_saves_weights_plan_and_code(tmp_path: Path) -> None:
    result = run("prune", MODEL, "--input", SHAPE, "--flops", "0.5", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "FLOPs" in result.stdout
    assert "channels" in result.stdout
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    weights = load_file(tmp_path / "out/model.safetensors")
    assert plan["model"] == MODEL
    assert plan["flops_after"] <= plan["flops_target"] <= 0.5 * plan["flops_before"]
    assert weights.keys() == Small().state_dict().keys()
    for name, dims in plan["kept"].items():
        for dim, kept in dims.items():
            assert weights[name].shape[int(dim)] == len(kept)
    compile((tmp_path / "out/model.py").read_text(), "model.py", "exec")


def test_prune_prints_json_and_nothing_else(tmp_path: Path) -> None:
    result = run("prune", MODEL, "--input", SHAPE, "-o", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["error"] <= 1e-9
    assert summary["parameters_after"] < summary["parameters_before"]
    assert list(summary["seconds"]) == ["load", "trace", "analyze", "plan", "rewrite", "verify", "save"]
    assert all(0 < group["after"] <= group["before"] for group in summary["groups"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_prune_starts_from_given_weights(tmp_path: Path, suffix: str) -> None:
    model = Small()
    path = tmp_path / f"trained{suffix}"
    if suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    result = run("prune", MODEL, "--input", SHAPE, "--weights", str(path), "-o", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    kept = plan["kept"]["first.weight"]["0"]
    assert torch.equal(load_file(tmp_path / "model.safetensors")["first.weight"], model.first.weight[kept])


def test_prune_leaves_ignored_modules_whole(tmp_path: Path) -> None:
    result = run("prune", MODEL, "--input", SHAPE, "--ignore", "first", "--flops", "0.7", "-o", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    assert load_file(tmp_path / "model.safetensors")["first.weight"].shape[0] == 16


def test_inspect_prints_the_channels() -> None:
    result = run("inspect", MODEL, "--input", SHAPE)
    assert result.exit_code == 0, result.output
    assert "first.weight[0]" in result.stdout
    assert "frozen" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "timm:nope_nope", "-o", "{tmp}"], "timm"),
        (["prune", MODEL, "-o", "{tmp}"], "no example inputs"),
        (["prune", MODEL, "--input", SHAPE, "--flops", "0", "-o", "{tmp}"], "flops"),
        (["prune", MODEL, "--input", SHAPE, "--flops", "nan", "-o", "{tmp}"], "flops"),
        (["prune", MODEL, "--input", SHAPE, "--ignore", "nothing.*", "-o", "{tmp}"], "nothing.*"),
        (["prune", MODEL, "--input", SHAPE, "--method", "magic", "-o", "{tmp}"], "magic"),
        (["prune", MODEL, "--input", SHAPE, "--weights", "{tmp}/none.pth", "-o", "{tmp}"], "there is no file"),
        (["prune", MODEL, "--input", SHAPE, "--weights", "{tmp}/bad.pth", "-o", "{tmp}"], "not a state dict"),
        (["prune", MODEL, "--input", SHAPE, "--weights", "{tmp}/bad.safetensors", "-o", "{tmp}"], "not a state dict"),
        (["prune", MODEL, "--input", SHAPE, "--weights", "{tmp}/other.pth", "-o", "{tmp}"], "does not fit"),
        (["prune", MODEL, "--input", SHAPE, "-o", "{tmp}/bad.pth"], "cannot be made a folder"),
        (["inspect", "nothing"], "is not understood"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    result = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fxprune: ")
    assert message in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", MODEL],
        ["prune", MODEL, "-o", "x", "--flops", "half"],
        ["prune", MODEL, "-o", "x", "--round-to", "0"],
        ["inspect", MODEL, "--input", "a,b"],
        ["nothing"],
    ],
)
def test_a_usage_error_has_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2


def test_debug_lets_the_traceback_through() -> None:
    result = run("inspect", "nothing", "--debug")
    assert type(result.exception).__name__ == "FxpruneError"

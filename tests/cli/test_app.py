from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.main import get_command
from typer.testing import CliRunner, Result

import fxprune
from fxprune.cli import app
from fxprune.cli.app import EXAMPLES
from fxprune.cli.images import open_images, preprocessing_for
from fxprune.errors import CannotScoreError, FxpruneError
from fxprune.rewriting import pruning_notes, set_pruning_notes

SHAPE = "1,3,8,8"


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
PRUNE = ("prune", MODEL, "--input", SHAPE)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


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
    assert "FLOPs" in result.stdout
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five classes of three images, with a file beside them that is none."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    for k, name in enumerate("abcde"):
        (root / name).mkdir()
        (root / name / "notes.txt").write_text("no image")
        for number in range(3):
            image.new("RGB", (12, 10), (k * 50, number * 80, 99)).save(root / name / f"{number}.png")
    return root


# --- prune ------------------------------------------------------------------------------------------------------------


def test_prune_writes_a_file_that_load_reads(small: Path) -> None:
    loaded = fxprune.load(small, original=Small())
    plan = fxprune.plan_of(loaded)
    assert plan.flops <= plan.flops_target == plan.flops_before // 2
    assert loaded(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_prune_compensates_on_what_batchnorm_remembers_unless_told_not_to(tmp_path: Path, small: Path) -> None:
    result = run(*PRUNE, "-o", tmp_path / "x.safetensors", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["compensated"]
    assert said["error"] <= 1e-9
    assert said["flops"]["after"] <= said["flops_target"]
    assert all(0 < group["channels"]["after"] <= group["channels"]["before"] for group in said["groups"])
    assert list(said["seconds"]) == ["load", "prune", "verify", "save"]
    assert not pruning_notes(fxprune.load(small, original=Small())).compensated


def test_prune_cuts_the_given_weights_to_a_folder_that_it_makes(tmp_path: Path) -> None:
    model = Small()
    path = tmp_path / "trained.safetensors"
    save_file(model.state_dict(), path)
    out = tmp_path / "made" / "x.safetensors"
    options = ("--weights", path, "--no-compensate", "--method", "l1", "--ignore", "first", "--flops", "0.7")
    result = run(*PRUNE, *options, "--code", tmp_path / "model.py", "-o", out)
    assert result.exit_code == 0, result.output
    cut = load_file(out)
    assert torch.equal(cut["first.weight"], model.first.weight)
    assert len(cut["second.weight"]) < 16
    compile((tmp_path / "model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize("flat", [False, True])
def test_prune_takes_images_with_labels_and_without(tmp_path: Path, images: Path, flat: bool) -> None:
    source = images / "a" if flat else f"imagefolder:{images}"
    options = ("--samples", "8", "--method", "taylor", "--no-compensate", "--no-verify")
    result = run(*PRUNE, "--data", source, *options, "-o", tmp_path / "x.safetensors")
    assert result.exit_code == 0, result.output
    assert "not used" not in result.stderr


# --- what a file is for -----------------------------------------------------------------------------------------------


def test_verify_tells_outputs_from_structure(small: Path, weights: Path) -> None:
    same = run("verify", small, "--model", MODEL, "--weights", weights, "--exact", "--json")
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["of"] == "outputs"
    other = run("verify", small, "--model", MODEL)
    assert other.exit_code == 0, other.output
    assert other.stdout.startswith("holds: structure")
    exact = run("verify", small, "--model", MODEL, "--exact")
    assert exact.exit_code == 1
    assert "changed since the cut" in exact.stderr


def test_verify_fails_where_weights_are_damaged(small: Path, tmp_path: Path) -> None:
    broken = fxprune.load(small, original=Small())
    set_pruning_notes(broken, replace(pruning_notes(broken), compensated=("by hand",)))
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    fxprune.save(broken, tmp_path / "broken.safetensors")
    result = run("verify", tmp_path / "broken.safetensors", "--model", MODEL)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1


def test_report_prints_and_writes_a_page(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = run("report", small, "--model", MODEL, "-o", page, "--no-measure")
    assert result.exit_code == 0, result.output
    assert "groups of channels" in result.stdout
    assert "small.safetensors" in page.read_text(encoding="utf-8")
    said = json.loads(run("report", small, "--model", MODEL, "--no-measure", "--json").stdout)
    assert {layer["name"] for layer in said["layers"]} == {"first", "norm", "second", "head"}


def test_export_writes_an_archive(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.pt2"
    result = run("export", small, "--model", MODEL, "-o", out, "--static-batch", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["error"] <= 1e-3
    assert out.is_file()


def test_finetune_trains_and_measures_the_accuracy(small: Path, images: Path, weights: Path, tmp_path: Path) -> None:
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
    result = run("finetune", small, "--model", MODEL, "--data", images / "a", "-o", tmp_path / "tuned.safetensors")
    assert result.exit_code == 1
    assert "--data has no labels: give a folder of folders" in result.stderr


@pytest.mark.parametrize("verb", ["prune", "finetune"])
def test_a_folder_of_the_parts_of_a_dataset_is_not_taken_for_two_classes(
    verb: str, small: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "train")
    shutil.copytree(images, tmp_path / "val")
    subject = PRUNE[1:] if verb == "prune" else (small, "--model", MODEL)
    result = run(verb, *subject, "--data", tmp_path, "-o", tmp_path / "tuned.safetensors")
    assert result.exit_code == 1
    assert f"give one of them, as imagefolder:{tmp_path / 'train'}" in result.stderr


@pytest.mark.parametrize("download", [False, True])
def test_prune_opens_datasets_of_torchvision_as_finetune_does(
    download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_inspect_prints_the_channels() -> None:
    result = run("inspect", MODEL, "--input", SHAPE, "--arg", "width=24")
    assert result.exit_code == 0, result.output
    assert "first.weight[0]" in result.stdout
    assert "24 channels" in result.stdout
    said = json.loads(run("inspect", MODEL, "--input", SHAPE, "--json").stdout)
    assert said["groups"][0]["channels"] == 16


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "timm:nope_nope", "-o", "{tmp}/x.safetensors"], "timm"),
        (["prune", MODEL, "-o", "{tmp}/x.safetensors"], "no example inputs"),
        ([*PRUNE, "--flops", "0", "-o", "{tmp}/x.safetensors"], "flops"),
        ([*PRUNE, "--flops", "nan", "-o", "{tmp}/x.safetensors"], "flops"),
        ([*PRUNE, "--ignore", "nothing.*", "-o", "{tmp}/x.safetensors"], "nothing.*"),
        ([*PRUNE, "--method", "magic", "-o", "{tmp}/x.safetensors"], "magic"),
        ([*PRUNE, "--weights", "{tmp}/none.pth", "-o", "{tmp}/x.safetensors"], "there is no file"),
        ([*PRUNE, "--weights", "{tmp}/bad.pth", "-o", "{tmp}/x.safetensors"], "not a state dict"),
        ([*PRUNE, "--weights", "{tmp}/other.pth", "-o", "{tmp}/x.safetensors"], "does not fit"),
        ([*PRUNE, "-o", "{tmp}/bad.pth/x.safetensors"], "is a file, not a folder"),
        ([*PRUNE, "-o", "{tmp}/folder.safetensors"], "is a folder"),
        ([*PRUNE, "--data", "{tmp}/none", "-o", "{tmp}/x.safetensors"], "does not exist"),
        ([*PRUNE, "--data", "imagefolder:{tmp}/empty", "-o", "{tmp}/x.safetensors"], "has no images"),
        ([*PRUNE, "--data", "{tmp}/false", "-o", "{tmp}/x.safetensors"], "false.png is no image"),
        ([*PRUNE, "--data", "web:pages", "-o", "{tmp}/x.safetensors"], "is not understood"),
        ([*PRUNE, "--data", "torchvision:FashonMNIST:x", "-o", "{tmp}/x.safetensors"], "did you mean FashionMNIST"),
        ([*PRUNE, "--data", "torchvision:FashionMNIST:{tmp}", "-o", "{tmp}/x.safetensors"], "--download"),
        (["inspect", "nothing"], "is not understood"),
        (["verify", "{tmp}/none.safetensors"], "there is no file"),
        (["verify", "{tmp}/bad.pth"], "cannot be read as safetensors"),
        (["report", "{small}"], "--model MODEL"),
        (["report", "{small}", "--model", "torch.nn:ReLU"], "another model"),
        (["export", "{small}", "--model", MODEL, "-o", "{tmp}/bad.pth/x.onnx"], "is a file, not a folder"),
        (["finetune", "{small}", "--model", MODEL, "--data", "{tmp}/none", "-o", "{tmp}/x.safetensors"], "not exist"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path, small: Path, arguments: list[str], message: str) -> None:
    if "--data" in arguments:
        pytest.importorskip("torchvision")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    for name in ("folder.safetensors", "empty", "false"):
        (tmp_path / name).mkdir()
    (tmp_path / "false" / "false.png").write_text("no image")
    result = run(*(argument.replace("{tmp}", str(tmp_path)).replace("{small}", str(small)) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fxprune: ")
    assert message in result.stderr
    assert not result.stdout
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", MODEL],
        [*PRUNE, "-o", "small.bin"],
        [*PRUNE, "-o", "x.safetensors", "--flops", "half"],
        [*PRUNE, "-o", "x.safetensors", "--round-to", "0"],
        [*PRUNE, "-o", "x.safetensors", "--arg", "width"],
        ["inspect", MODEL, "--input", "a,b"],
        ["export", "x.safetensors", "-o", "x.bin"],
        ["nothing"],
    ],
)
def test_a_usage_error_has_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prune"], ["missing argument 'MODEL'", "see fxprune prune --help"]),
        ([*PRUNE, "--flop", "0.5"], ["no such option", "--flop"]),
        ([*PRUNE, "-o", "x.safetensors", "--flops", "half"], ["--flops", "half"]),
        ([*PRUNE, "-o", "x.safetensors", "--samples=0"], ["--samples", "0"]),
        ([*PRUNE, "-o", "x.bin"], ["--output: 'x.bin' must end in .safetensors; see fxprune prune --help"]),
        (["prun", MODEL], ["no such command 'prun'", "see fxprune --help"]),
    ],
)
def test_a_usage_error_is_one_line_of_what_was_given_and_where_to_look(arguments: list[str], said: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("fxprune: ")
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in said)


def test_without_a_command_the_commands_are_shown() -> None:
    result = run()
    assert result.exit_code == 0
    assert all(verb.__name__ in result.stdout for verb in EXAMPLES)


def test_a_folder_without_permission_is_found_out_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("fxprune.cli.prune.build", lambda *args: pytest.fail("the model was built"))
    result = run(*PRUNE, "-o", tmp_path / "x.safetensors")
    assert result.exit_code == 1
    assert "no permission" in result.stderr


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
    result = run(*command, "-o", path)
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1
    assert "interrupted" in result.stderr
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_debug_lets_the_traceback_through() -> None:
    assert isinstance(run("inspect", "nothing", "--debug").exception, FxpruneError)


def test_an_unforeseen_error_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("fxprune.cli.inspect.analyze", fail)
    result = run("inspect", MODEL, "--input", SHAPE)
    assert result.exit_code == 1
    assert result.stderr == "fxprune: RuntimeError: two lines (not foreseen; --debug shows where)\n"


@pytest.mark.parametrize("verb", ["prune", "inspect", "verify", "report", "export", "finetune"])
def test_the_help_of_each_verb_shows_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"fxprune {verb} " in result.stdout


def documented() -> list[str]:
    page = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
    examples = [line for lines in EXAMPLES.values() for line in lines]
    return [*examples, *(line for line in page.read_text().splitlines() if line.startswith("fxprune "))]


@pytest.mark.parametrize("line", documented())
def test_what_is_shown_as_an_example_is_understood(line: str) -> None:
    group: Any = get_command(app)
    _, verb, *arguments = shlex.split(line)
    with group.commands[verb].make_context(verb, arguments) as context:
        assert context.params


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_become_what_the_model_takes(images: Path) -> None:
    how = preprocessing_for(Small(), [torch.zeros(1, 3, 8, 6)])
    loader, classes = open_images(str(images), how, batch_size=4, shuffle=False)
    batch, labels = next(iter(loader))
    assert classes == 5
    assert batch.shape == (4, 3, 8, 6)
    assert labels.tolist() == [0, 0, 0, 1]
    again = preprocessing_for(Small(), [torch.zeros(1, 1, 8, 8)], mean="0.2", std="0.3")
    assert (again.mean, again.std) == ((0.2,), (0.3,))


def test_a_dataset_of_torchvision_is_opened_by_name() -> None:
    pytest.importorskip("torchvision")
    how = preprocessing_for(Small(), [torch.zeros(1, 3, 8, 8)])
    loader, classes = open_images("torchvision:FakeData", how, batch_size=4)
    batch, labels = next(iter(loader))
    assert classes is None
    assert batch.shape == (4, 3, 8, 8)
    assert len(labels) == 4


def test_models_of_other_inputs_are_refused() -> None:
    with pytest.raises(FxpruneError, match=r"takes inputs of shapes \[\[1, 7\]\]"):
        preprocessing_for(Small(), [torch.zeros(1, 7)])


def test_what_fxprune_warns_of_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CannotScoreError("too small")

    monkeypatch.setattr("fxprune.api.compensated", refuse)
    result = run(*PRUNE, "-o", tmp_path / "small.safetensors")
    assert result.exit_code == 0, result.output
    assert "note: cut by relevance and not compensated: too small\n" in result.stderr


def test_the_module_runs_as_the_command_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fxprune", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("fxprune", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fxprune {metadata.version('fxprune')}\n"

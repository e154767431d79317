from __future__ import annotations

import runpy
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from typer.main import get_command

from fxprune.cli import app
from fxprune.cli.app import EXAMPLES


def test_without_a_command_the_commands_are_shown() -> None:
    result = run()
    assert result.exit_code == 0
    assert all(verb.__name__ in result.stdout for verb in EXAMPLES)


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


def test_the_module_runs_as_the_command_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fxprune", "--version"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("fxprune", run_name="__main__")
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fxprune {metadata.version('fxprune')}\n"

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import MODEL, PRUNE, assert_fails, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "missing argument 'MODEL'; see fxprune prune --help"),
        (["prune", MODEL], "missing option"),
        ([*PRUNE, "--flop", "0.5"], "no such option"),
        ([*PRUNE, "-o", "x.safetensors", "--flops", "half"], "--flops half: "),
        ([*PRUNE, "-o", "x.safetensors", "--samples=0"], "--samples 0: "),
        ([*PRUNE, "-o", "x.bin"], "--output: 'x.bin' must end in .safetensors; see fxprune prune --help"),
        (["prun", MODEL], "no such command 'prun'"),
    ],
)
def test_a_usage_error_says_in_one_line_what_was_given_and_where_to_look(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails(*arguments, message=message, code=2)
    assert "; see fxprune" in run(*arguments).stderr
    assert not list(tmp_path.iterdir())

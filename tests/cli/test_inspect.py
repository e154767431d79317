from __future__ import annotations

import json

from command_line import MODEL, PRUNE, run


def test_channels_are_printed() -> None:
    result = run("inspect", *PRUNE[1:], "--arg", "width=24")
    assert result.exit_code == 0, result.output
    assert "first.weight[0]" in result.stdout
    assert "24 channels" in result.stdout
    said = json.loads(run("inspect", *PRUNE[1:], "--json").stdout)
    assert said["model"] == MODEL
    assert said["groups"][0]["channels"] == 16
    assert {frozen["reason"] for frozen in said["frozen"]} >= {"model output"}

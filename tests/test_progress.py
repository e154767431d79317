"""Progress is shown by bars, by a function, or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from rich.console import Console

import fxprune.progress
from fxprune import FxpruneError
from fxprune.progress import bars, shown, silent


def test_false_and_other_processes_show_nothing() -> None:
    for progress, here in ((False, True), (True, False), (print, False)):
        with shown(progress, here) as show:
            assert show is silent


def test_a_function_is_called_with_the_progress() -> None:
    calls: list[tuple[str, int, int, Mapping[str, float]]] = []
    with shown(lambda *call: calls.append(call)) as show:
        show("score", 1, 2, {"loss": 0.5})
    assert calls == [("score", 1, 2, {"loss": 0.5})]


@pytest.mark.parametrize("interactive", [False, True])
def test_true_shows_bars_in_a_terminal_only(interactive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=interactive, force_interactive=interactive)
    monkeypatch.setattr(fxprune.progress, "Console", lambda: console)
    with shown(True) as show:
        assert (show is not silent) is interactive


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_other_values_are_refused(value: Any) -> None:
    with (
        pytest.raises(FxpruneError, match=r"^progress \(=.*\) must be True, False or a function of \(name, done"),
        shown(value),
    ):
        pass


def test_each_piece_of_work_has_a_bar_with_its_figures() -> None:
    file = io.StringIO()
    with bars(Console(file=file, force_terminal=True, width=100), "prune") as show:
        show("score", 1, 4, {})
        show("compensate", 2, 3, {"error": 0.12345})
        show("compensate", 3, 3, {"error": 0.1})
    text = file.getvalue()
    assert all(part in text for part in ("prune", "score", "1/4", "compensate", "3/3  error 0.1"))

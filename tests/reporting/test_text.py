"""The tables in the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

import fxprune
from fxprune.reporting.facts import Certificate
from fxprune.reporting.text import facts


def test_the_table_fits_any_width(made: fxprune.Report) -> None:
    text = str(made)
    assert max(map(len, text.splitlines())) <= 160
    assert "frozen channels" in text
    narrow = io.StringIO()
    Console(width=60, file=narrow).print(made)
    assert max(map(len, narrow.getvalue().splitlines())) <= 60


def test_the_facts_say_what_is_compared(made: fxprune.Report) -> None:
    said = dict(facts(made))
    assert said["certificate"].startswith("equals the zero-masked original (outputs): largest relative difference ")
    assert " → " in said["latency"]
    assert "speedup" in said["latency"]
    wrong = replace(made, certificate=Certificate(0.1, "structure"), latency=None)
    said = dict(facts(wrong))
    assert said["certificate"].startswith(
        "DIFFERS FROM the zero-masked original (structure, with slices of its weights)"
    )
    assert "latency" not in said
    again = replace(made, certificate=Certificate(0.0, "structure", "rebuilt"))
    assert dict(facts(again))["certificate"].startswith(
        "equals the zero-masked original (structure, with slices of its weights, rebuilt with random weights)"
    )


def test_each_budget_is_beside_what_it_limits(made: fxprune.Report) -> None:
    said = dict(facts(replace(made, params_target=0.75, flops_target=made.flops.before)))
    assert said["parameters"].endswith("budget 75.0 %")
    assert "budget" not in said["FLOPs"]
    assert "activations" not in said
    said = dict(facts(replace(made, memory_target=0.25)))
    assert "budget" in said["FLOPs"]
    assert said["activations"].endswith("budget 25.0 %")

"""The report as a value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune


def test_what_is_measured_is_of_both_models(made: fxprune.Report) -> None:
    assert made.certificate is not None
    assert made.certificate.holds
    assert made.certificate.of == "outputs"
    assert made.latency is not None
    assert made.latency[0] is not None
    before, after = made.memory
    assert before is not None
    assert after.weights < before.weights


def test_nothing_is_changed_by_a_report(model: nn.Module, small: nn.Module) -> None:
    small.train()
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    fxprune.report(small, original=model, repeats=1)
    assert small.training
    assert all(torch.equal(state[name], tensor) for name, tensor in small.state_dict().items())
    small.eval()


def test_a_page_that_cannot_be_written_is_said_to(made: fxprune.Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(fxprune.FxpruneError, match="cannot be written"):
        made.to_html(tmp_path / "file" / "report.html")


def test_the_original_goes_by_name(model: nn.Module, small: nn.Module) -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"^report: too many .*: call report\(pruned, original=model\)$"):
        fxprune.report(small, model)


def test_the_repr_is_one_line(made: fxprune.Report) -> None:
    text = repr(made)
    assert re.fullmatch(r"<Report of Residual: FLOPs \S+.* → .*, parameters .*, \d groups, verified>", text)
    assert "\n" not in text

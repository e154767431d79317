"""The page is well-formed and loads nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.reporting.facts import Certificate


class Page(HTMLParser):
    """The tags of a page, each of which must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "!doctype"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(made: fxprune.Report, tmp_path: Path) -> None:
    text = made.to_html(tmp_path / "report.html", file="<b>&.safetensors")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    page = Page(text)
    assert not page.open
    for tag, attributes in page.seen:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href"} & attributes.keys()
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "<b>&.safetensors" not in text


def test_hundreds_of_layers_make_a_short_table_and_a_page() -> None:
    deep = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(300)))
    cut = fxprune.prune(deep, 0.6, example_inputs=torch.zeros(1, 4, 2, 2), compensate=False, method="l2")
    made = fxprune.report(cut, original=deep, measure=False)
    assert len(made.layers) == 300
    assert len(str(made).splitlines()) < 90
    assert "more" in str(made)
    assert made.to_html().count('<g class="column">') == 600


@pytest.mark.parametrize(
    ("certificate", "compensated", "claims"),
    [
        (Certificate(0.0, "outputs"), (), "<p>The pruned model computes what the original computes with the removed"),
        (Certificate(0.0, "structure"), ("ridge",), "<p>Compensation changed the weights after pruning. So this"),
        (Certificate(0.0, "structure"), (), "either training changed them, or that original has other weights than"),
        (Certificate(0.0, "structure", "rebuilt"), (), "built again by its name, with random weights, and the weights"),
        (Certificate(0.0, "structure", "rebuilt"), ("ridge",), "weights of the pruned model were not compared. So"),
        (None, (), "There is none: it needs the original"),
    ],
)
def test_a_certificate_says_what_was_compared_with_what(
    made: fxprune.Report, certificate: Certificate | None, compensated: tuple[str, ...], claims: str
) -> None:
    content = replace(made, certificate=certificate, compensated=compensated).to_html()
    assert claims in content
    assert ("changed the weights after pruning" in content) == ("changed the weights after pruning" in claims)
    assert ("original rebuilt" in content) == (certificate is not None and certificate.against == "rebuilt")

"""Every code block of the documentation that is marked with `<!-- run -->` runs; those of a page share their names."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^<!-- run -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if BLOCK.search(page.read_text())
]


def blocks(page: Path) -> list[str]:
    """The code, each block after as many empty lines as stand before it, so that tracebacks tell the line."""
    text = page.read_text()
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(text)]


# What a page's libraries warn of is no matter of the page.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("timm", "accelerate", "torchao"):
        if library in page.read_text():
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        for code in blocks(page):
            exec(compile(code, str(page), "exec"), names)
    finally:
        _forget_accelerator()


def _forget_accelerator() -> None:
    """An Accelerator settles device and precision for the whole process."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def test_every_mark_stands_before_a_block() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert page.read_text().count("<!-- run -->") == len(blocks(page)), page

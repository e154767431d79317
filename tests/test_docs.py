"""Every Python block of README and docs runs, unless a comment before it gives a reason; blocks of a page share names.

    <!-- not run: needs the network -->
    ```python
    ...
    ```

A `text` block right after a code block is what the code prints, with `...` for anything.

`GIVEN` has the names that a page assumes, such as a model or a loader. Small models with random weights replace those
that timm would download or that take minutes.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^[ \t>]*(?:```|~~~)[ \t]*\{?[ \t]*\.?(?:python|py)\b", re.MULTILINE)
MARK = r"<!-- (?P<mark>(?:not )?run\b.*?) -->"
BLOCK = re.compile(
    rf"^(?:{MARK}\n)?```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<printed>.*?)^```$)?", re.MULTILINE | re.DOTALL
)
OPTIONAL = ("timm", "torchvision", "accelerate", "torchao", "sklearn", "onnxscript", "transformers")


@dataclass(frozen=True)
class Block:
    """A code block: its code, the reason not to run it, and the output that the page claims."""

    code: str
    why_not: str | None
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page; empty lines in front of each make tracebacks show the line of the page."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        mark = match["mark"] or "run"
        why_not = mark.removeprefix("not run").lstrip(": ") if mark.startswith("not run") else None
        yield Block("\n" * text.count("\n", 0, match.start("code")) + match["code"], why_not, match["printed"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUN = [page for page in PAGES if any(block.why_not is None for block in blocks(page))]


class SmallNet(nn.Sequential):
    """Replaces any model of images."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        )
        # fxprune reads the input size of timm models here.
        self.pretrained_cfg = {"input_size": (3, 32, 32)}


def small_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(32, 3, 32, 32), torch.arange(32) % 10), batch_size=16)


GIVEN: dict[str, Any] = {
    "docs/training.md": lambda: {"fxprune": fxprune, "model": SmallNet(), "loader": small_loader()},
}


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timm.create_model` downloads nothing, and returns a small net for all but timm's own test models."""
    try:
        import timm
    except ImportError:
        return
    create = timm.create_model

    def create_small(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create(name, **arguments) if name.startswith("test_") else SmallNet()

    monkeypatch.setattr(timm, "create_model", create_small)


# Warnings of the libraries that a page uses are not the page's fault.
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("small_models")
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_run = [block for block in blocks(page) if block.why_not is None]
    for library in OPTIONAL:
        if any(re.search(rf"^\s*(?:import|from) .*\b{library}\b", block.code, re.MULTILINE) for block in to_run):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "__main__", **GIVEN.get(name_of(page), dict)()}
    try:
        for block in to_run:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block.code, str(page), "exec"), names)
            if block.printed is not None:
                assert prints(block.printed, printed.getvalue()), f"{block.code}\nprints\n{printed.getvalue()}"
    finally:
        _forget_accelerator()


def prints(claimed: str, printed: str) -> bool:
    """Whether the output matches the page's; a line of dots matches any lines."""
    claimed = re.sub(r"^ *\.\.\.$", "...", claimed, flags=re.MULTILINE)
    return doctest.OutputChecker().check_output(claimed, printed, doctest.ELLIPSIS)


def _forget_accelerator() -> None:
    """The first Accelerator fixes device and precision for the whole process."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_found_and_runs_or_has_a_reason_not_to(page: Path) -> None:
    text, found = page.read_text(), list(blocks(page))
    assert len(FENCE.findall(text)) == len(found), (
        "a Python block is indented or marked in another way, so it would not run"
    )
    assert len(re.findall(r"<!-- (?:not )?run\b", text)) == len(re.findall(r"-->\n```python\n", text)), "a stray mark"
    for block in found:
        assert block.why_not != "", f"no reason not to run: {block.code.strip()[:60]}"
        compile(block.code, str(page), "exec")


def test_the_summary_of_models_matches_their_table() -> None:
    file, page = ROOT / "docs" / "models.json", (ROOT / "docs" / "models.md").read_text()
    data = json.loads(file.read_text())
    failed = data["columns"].index("failed")
    assert file.stat().st_size < 1_000_000
    assert all(len(row) == len(data["columns"]) for row in data["rows"])
    assert f"| tried | {len(data['rows']):,} (" in page
    assert f"| fail on the meta device | {sum(bool(row[failed]) for row in data['rows'])} |" in page


def test_the_map_of_the_code_lists_the_packages_in_the_order_of_the_import_contract() -> None:
    tomllib = pytest.importorskip("tomllib")
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    mapped = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert mapped == contract["layers"]


def test_the_picture_of_the_channel_graph_is_up_to_date() -> None:
    path = ROOT / "docs" / "images" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw", path)
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    graph = fxprune.analyze(fxprune.trace(draw.Net(), torch.zeros(1, 3, 8, 8)))
    assert draw.channel_graph(graph) == path.with_name("channel-graph.svg").read_text(), f"run {path}"

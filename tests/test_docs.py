"""Every Python block of README and docs runs, unless a comment before it says why not; blocks of a page share names.

    <!-- not run: needs the network -->
    ```python
    ...
    ```

A block of `text` right after a block of code is what the code prints, with `...` for anything.

What a page takes as given (a model, a loader) stands in `GIVEN`. Models that timm would fetch or that take minutes are
stood in for by small ones without weights.
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
    """A block of code; `why_not` is the reason not to run it, `printed` what the page says that it prints."""

    code: str
    why_not: str | None
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, each after as many empty lines as stand before it, so that tracebacks tell the line."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        mark = match["mark"] or "run"
        why_not = mark.removeprefix("not run").lstrip(": ") if mark.startswith("not run") else None
        yield Block("\n" * text.count("\n", 0, match.start("code")) + match["code"], why_not, match["printed"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUN = [page for page in PAGES if any(block.why_not is None for block in blocks(page))]


class SmallNet(nn.Sequential):
    """Stands in for any model of images."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        )
        # Where fxprune looks for the size of the input of a timm model.
        self.pretrained_cfg = {"input_size": (3, 32, 32)}


def small_loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(32, 3, 32, 32), torch.arange(32) % 10), batch_size=16)


GIVEN: dict[str, Any] = {
    "docs/training.md": lambda: {"fxprune": fxprune, "model": SmallNet(), "loader": small_loader()},
}


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timm.create_model` fetches nothing, and gives a small net for what is not one of timm's own test models."""
    try:
        import timm
    except ImportError:
        return
    create = timm.create_model

    def create_small(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create(name, **arguments) if name.startswith("test_") else SmallNet()

    monkeypatch.setattr(timm, "create_model", create_small)


# What a page's libraries warn of is no matter of the page.
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


def prints(said: str, printed: str) -> bool:
    """Whether a page tells the truth about what is printed; a line of dots stands for any lines."""
    said = re.sub(r"^ *\.\.\.$", "...", said, flags=re.MULTILINE)
    return doctest.OutputChecker().check_output(said, printed, doctest.ELLIPSIS)


def _forget_accelerator() -> None:
    """An Accelerator settles device and precision for the whole process."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_found_and_what_is_not_run_says_why(page: Path) -> None:
    text, found = page.read_text(), list(blocks(page))
    assert len(FENCE.findall(text)) == len(found), "a Python block is indented or spelt otherwise, and would not run"
    assert len(re.findall(r"<!-- (?:not )?run\b", text)) == len(re.findall(r"-->\n```python\n", text)), "a stray mark"
    for block in found:
        assert block.why_not != "", f"no reason is given: {block.code.strip()[:60]}"
        compile(block.code, str(page), "exec")


def test_the_table_of_models_is_the_one_that_the_page_sums_up() -> None:
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


def test_the_picture_of_the_channel_graph_is_of_the_present_analysis() -> None:
    path = ROOT / "docs" / "images" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw", path)
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    graph = fxprune.analyze(fxprune.trace(draw.Net(), torch.zeros(1, 3, 8, 8)))
    assert draw.channel_graph(graph) == path.with_name("channel-graph.svg").read_text(), f"run {path}"

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import fxprune
from fxprune.models import load_model
from fxprune.reporting.charts import _lanes
from fxprune.reporting.facts import Change, Row, total
from fxprune.reporting.measuring import certify, memory_of

IMAGE = torch.zeros(1, 3, 12, 12)


class Residual(nn.Module):
    """A residual block, a product of two activations, a weight that is no module's, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.one = nn.Conv2d(16, 24, 1)
        self.two = nn.Conv2d(24, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu())
        x = self.up(x).relu().flatten(2)
        return self.head((x @ x.transpose(1, 2)).mean(1)) * self.scale


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


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def small(model: nn.Module) -> nn.Module:
    return fxprune.prune(model, 0.5, example_inputs=IMAGE, compensate=False)


@pytest.fixture(scope="module")
def made(model: nn.Module, small: nn.Module) -> fxprune.Report:
    return fxprune.report(small, original=model, repeats=2)


def test_layers_add_up_to_the_model(model: nn.Module, small: nn.Module, made: fxprune.Report) -> None:
    plan = fxprune.plan_of(small)
    assert total(layer.flops for layer in made.layers) == made.flops == Change(plan.flops_before, plan.flops)
    counted = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, small)]
    assert total(layer.parameters for layer in made.layers) == made.parameters == Change(*counted)


def test_channels_of_layers_and_groups_are_those_of_the_weights(small: nn.Module, made: fxprune.Report) -> None:
    layers = {layer.name: layer for layer in made.layers}
    assert layers["one"].channels == Change(24, small.one.out_channels)
    assert layers["up"].channels == Change(8, small.up.out_channels)
    assert layers["scale"].channels is None
    group = next(group for group in made.groups if group.layers == ("one",))
    assert group.channels == layers["one"].channels
    assert group.flops == layers["one"].flops
    assert {"stem", "norm", "two"} <= set(next(g for g in made.groups if "stem" in g.layers).layers)


def test_frozen_channels_have_their_reason_and_their_layers(made: fxprune.Report) -> None:
    reasons = {each.reason: each.layers for each in made.frozen}
    assert any("head" in layers for layers in reasons.values())


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


def test_without_the_original_the_pruned_model_tells_what_it_can(small: nn.Module, made: fxprune.Report) -> None:
    alone = fxprune.report(small, measure=False)
    assert alone.certificate is None
    assert alone.memory[0] is None
    assert (alone.flops, alone.parameters) == (made.flops, made.parameters)
    assert [(group.name, group.channels) for group in alone.groups] == [(g.name, g.channels) for g in made.groups]
    known = {layer.name: layer.flops for layer in made.layers if layer.wide}
    assert {layer.name: layer.flops for layer in alone.layers if layer.wide} == known
    assert "needs the original" in alone.to_html()


def test_a_model_of_timm_is_built_again() -> None:
    pytest.importorskip("timm")
    network = load_model("timm:test_vit", num_classes=10)
    made = fxprune.report(fxprune.prune(network, 0.5, compensate=False, method="l2"), repeats=1)
    assert made.certificate is not None
    assert (made.certificate.of, made.certificate.holds) == ("structure", True)
    assert "fxprune.load(&#x27;small.safetensors&#x27;)" in made.to_html()


def test_another_model_is_refused(small: nn.Module) -> None:
    with pytest.raises(fxprune.FxpruneError, match="is not what this Residual was pruned from"):
        fxprune.report(small, original=nn.Conv2d(3, 4, 1), measure=False)
    with pytest.raises(fxprune.FxpruneError, match="has no plan"):
        fxprune.report(nn.Conv2d(3, 4, 1))


def test_a_trained_model_has_its_structure_certified(model: nn.Module, small: nn.Module) -> None:
    trained = fxprune.prune(model, 0.5, example_inputs=IMAGE, compensate=False)
    with torch.no_grad():
        trained.head.weight.add_(1)
    assert certify(model, trained).of == "structure"
    with torch.no_grad():
        trained.head.weight.fill_(float("nan"))
    certificate = certify(model, trained)
    assert not certificate.holds


def test_the_table_fits_any_width(made: fxprune.Report) -> None:
    text = str(made)
    assert max(map(len, text.splitlines())) <= 160
    assert "frozen channels" in text
    narrow = io.StringIO()
    Console(width=60, file=narrow).print(made)
    assert max(map(len, narrow.getvalue().splitlines())) <= 60


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


def test_a_page_that_cannot_be_written_is_said_to(made: fxprune.Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(fxprune.FxpruneError, match="cannot be written"):
        made.to_html(tmp_path / "file" / "report.html")


def test_hundreds_of_layers_make_a_short_table_and_a_page() -> None:
    deep = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(300)))
    cut = fxprune.prune(deep, 0.6, example_inputs=torch.zeros(1, 4, 2, 2), compensate=False, method="l2")
    made = fxprune.report(cut, original=deep, measure=False)
    assert len(made.layers) == 300
    assert len(str(made).splitlines()) < 90
    assert "more" in str(made)
    assert made.to_html().count('<g class="column">') == 600


@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:test_efficientnet", "torchvision:shufflenet_v2_x0_5"])
def test_costs_of_nodes_add_up_to_those_of_the_graph(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    with torch.device("meta"):
        network = load_model(spec).eval()
    graph = fxprune.analyze(fxprune.trace(network, copy=False))
    random = np.random.default_rng(0)
    for alive in (np.ones(graph.num_channels, dtype=bool), random.random(graph.num_channels) < 0.5):
        assert sum(each(alive) for terms in graph.costs.values() for each in terms) == graph.flops(alive)


def test_the_peak_counts_what_is_alive_at_a_time() -> None:
    chain = nn.Sequential(*(nn.ReLU() for _ in range(5)))
    # The input is the caller's; of the chain's results two are there at a time.
    assert memory_of(chain, torch.zeros(1, 1000)).peak == 2 * 4000


def test_a_lane_runs_until_it_is_read_for_the_last_time() -> None:
    rows = [
        Row("x", "input", (), None),
        Row("a", "Conv2d", (0,), 0, Change(4, 2)),
        Row("b", "Conv2d", (1,), 1, Change(4, 2)),
        Row("", "add", (2, 1), 0),
        Row("output", "output", (3,), None),
    ]
    assert _lanes(rows) == [0, 0, 1, 0, 0]


def test_the_original_goes_by_name(model: nn.Module, small: nn.Module) -> None:
    with pytest.raises(fxprune.FxpruneError, match=r"^report: too many .*: call report\(pruned, original=model\)$"):
        fxprune.report(small, model)


def test_the_repr_is_one_line(made: fxprune.Report) -> None:
    text = repr(made)
    assert re.fullmatch(r"<Report of Residual: FLOPs \S+.* → .*, parameters .*, \d groups, verified>", text)
    assert "\n" not in text

"""What a model keeps for the size of its last input is made anew in the graph, for any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import trace
from fxprune.tracing.notes import trace_notes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def anchors_of(maps: list[Tensor], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    points, steps = [], []
    for feature, stride in zip(maps, strides, strict=True):
        _, _, h, w = feature.shape
        sx = torch.arange(end=w, device=feature.device, dtype=feature.dtype) + 0.5
        sy = torch.arange(end=h, device=feature.device, dtype=feature.dtype) + 0.5
        sy, sx = torch.meshgrid(sy, sx, indexing="ij")
        points.append(torch.stack((sx, sy), -1).view(-1, 2))
        steps.append(torch.full((h * w, 1), stride, dtype=feature.dtype, device=feature.device))
    return torch.cat(points), torch.cat(steps)


class Detect(nn.Module):
    """The head of a detector, as YOLO's: its anchors belong to the size of the last input."""

    shape: Any = None
    anchors = torch.empty(0)
    strides = torch.empty(0)

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.boxes = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(2))

    def forward(self, maps: list[Tensor]) -> Any:
        shape = maps[0].shape
        out = [box(x) for box, x in zip(self.boxes, maps, strict=True)]
        if self.training:
            return out
        now: Any = {"shape": shape, "pair": (shape[2], shape[3]), "list": [*shape[-2:]]}[self.key]
        if self.shape != now:
            anchors, strides = anchors_of(maps, (2, 4))
            self.anchors, self.strides = anchors.t(), strides.t()
            self.shape = now
        flat = torch.cat([x.flatten(2) for x in out], 2)
        xy = (flat[:, :2] + self.anchors) * self.strides
        return torch.cat([xy, flat[:, 2:].sigmoid()], 1), out


class Detecting(Detect):
    """A head that does something before its parent does."""

    def forward(self, maps: list[Tensor]) -> Any:
        return super().forward([x.relu() for x in maps])


class Yolo(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.head = Detecting("shape") if key == "inherited" else Detect(key)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head([x, self.down(x)])


@pytest.mark.filterwarnings("ignore:Only the code of eval")
@pytest.mark.parametrize(
    ("key", "has_run", "training"),
    [
        ("shape", False, False), ("shape", True, False), ("shape", False, True), ("shape", True, True),
        ("pair", True, False), ("list", True, False), ("inherited", True, False),
    ],
)  # fmt: skip
def test_anchors_are_made_anew_whether_the_model_has_run_or_not(key: str, has_run: bool, training: bool) -> None:
    model = Yolo(key).eval()
    x = torch.randn(1, 3, 16, 16)
    if has_run:
        model(x)
    model.train(training)
    traced = trace(model, x)
    pruned = fxprune.prune(model, 0.6, example_inputs=x, compensate=False)
    assert not [note for note in trace_notes(traced).remarks if "Loops and branches" in note]
    for shape in ((1, 3, 16, 16), (2, 3, 24, 16), (3, 3, 8, 32)):
        y = torch.randn(shape)
        for made in (traced, pruned):
            made.train()
            sum(part.sum() for part in made(y)[1]).backward()
            made.eval()
        with torch.no_grad():
            traced.load_state_dict(model.state_dict())
            model.eval()
            assert torch.equal(traced(y)[0], model(y)[0])
            assert pruned(y)[0].shape == model(y)[0].shape
    assert fxprune.verify(model, fxprune.rewrite(fxprune.analyze(trace(model, x)), fxprune.plan_of(pruned))) < 1e-9


class Tables(nn.Module):
    """Tables by size in a dict, and one size in two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(8, 8), nn.Linear(8, 3)
        self.tables: dict[Any, Tensor] = {}
        self.length, self.table = 0, None

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if (b, n) not in self.tables:
            self.tables[b, n] = torch.arange(n)[None, :, None].expand(b, n, 1) / n
        if self.length != n:
            self.table, self.length = torch.ones(n, 1) * n, n
        return self.h((self.f(x) + self.tables[b, n] + self.table).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("has_run", [False, True])
def test_tables_by_size_are_made_anew(has_run: bool) -> None:
    model = Tables().eval()
    if has_run:
        model(torch.randn(2, 5, 8))
    traced = trace(model, torch.randn(2, 5, 8))
    for shape in ((2, 5, 8), (3, 7, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(traced(x), Tables.forward(model, x))


class Counting(nn.Module):
    """Numbers that are no keys: a counter, and a size that is only compared."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(8, 8), nn.Linear(8, 3)
        self.calls, self.seen, self.expected = 3, 2, 8

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen = self.seen + x.size(0)
        if x.size(1) != self.expected:
            self.expected = 5
            x = x * 2
        return self.h(self.f(x).relu()) * self.calls * self.seen  # type: ignore[no-any-return]


def test_numbers_that_are_no_keys_are_the_model_s() -> None:
    x = torch.randn(4, 8)
    with pytest.warns(fxprune.errors.FxpruneWarning, match="kept from call to call"):
        traced = trace(Counting().eval(), x)
    model = Counting().eval()
    model.load_state_dict(traced.state_dict())
    torch.testing.assert_close(traced(x), model(x))


class Logits(nn.Module):
    """Anchors that float32 rounds; `fails` in training, whatever the model has kept."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.shapes: Any = []
        self.table = torch.empty(0)
        self.f, self.h, self.fails = nn.Linear(8, 8), nn.Linear(8, 3), fails

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.fails and x.sum() > 0:
            x = -x
        shapes = [[x.size(0), x.size(1)]]
        if self.shapes != shapes:
            at = (torch.arange(x.size(1), dtype=x.dtype)[:, None] + 0.5) / x.size(1)
            self.table, self.shapes = torch.log(at / (1 - at)), shapes
        return self.h((self.f(x) + self.table).relu())  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:Only the code of eval is in the graph:fxprune.FxpruneWarning")
@pytest.mark.parametrize("fails", [False, True])
def test_tables_are_made_anew_and_verified_in_float64_where_a_run_has_rounded_them(fails: bool) -> None:
    model, x = Logits(fails).eval(), torch.randn(2, 7, 8)
    model(x)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    # The first of them has the size of the table that the model has kept.
    for y in (x, torch.randn(3, 11, 8)):
        assert fxprune.verify(model, pruned, y) < 1e-12
    assert model.shapes == [[2, 7]]
    pruned.h.weight.data[0, 0] += 1e-7
    assert fxprune.verify(model, pruned, x) > 1e-9

"""The original of a checkpoint is found again, whatever it keeps from call to call; another model is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Block, assert_same, pruned_block
from invariant import image, net, randomise
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.running.copies import named_tensors
from fxprune.tracing.notes import trace_notes


def _other(**changes: Any) -> nn.Module:
    model = Block()
    for name, part in changes.items():
        setattr(model, name, part)
    return model


def _untied() -> nn.Module:
    model = Block()
    model.second.weight = nn.Parameter(model.first.weight.detach().clone())
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Block(20), r"stem\.weight has shape \[20, 3, 3, 3\] in it, not \[16, 3, 3, 3\]"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), r"it has 0\.weight \(and 1 more\) besides"),
        (lambda: _other(head=nn.Linear(16, 5, bias=False)), r"it has no head\.bias\."),
        (_untied, r"in it, first\.weight and second\.weight are not one tensor"),
        (
            lambda: _other(stem=nn.Conv2d(3, 16, 3, stride=2, padding=1)),
            "its tensors fit, but its operations",
        ),
        (
            lambda: _other(norm=nn.BatchNorm2d(16, eps=0.1)),
            "its tensors fit, but its operations",
        ),
    ],
)
def test_another_model_is_refused(tmp_path: Path, model: Any, message: str) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    with pytest.raises(FxpruneError, match=f"another model: {message}.*as original="):
        fxprune.load(tmp_path / "small", original=model())


def test_other_code_with_the_same_tensors_is_let_through_on_request(tmp_path: Path) -> None:
    class Rewritten(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.relu(self.norm(self.stem(x)).mul(self.scale))
            return self.head(self.second(self.first(self.depthwise(x)).relu()).mean((2, 3)))

    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    with pytest.raises(FxpruneError, match="operations or their settings differ"):
        fxprune.load(tmp_path / "small", original=Rewritten())
    x = image()
    assert torch.equal(fxprune.load(tmp_path / "small", original=Rewritten(), strict=False)(x), pruned(x))
    with pytest.raises(FxpruneError, match="another model"):
        fxprune.load(tmp_path / "small", original=Block(20), strict=False)


def test_buffers_outside_of_the_state_dict_are_right_in_a_model_built_without_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(2, 2), num_heads=(2, 4))
    pruned = fxprune.prune(model, method="l2", compensate=False)
    assert set(named_tensors(pruned)) - set(pruned.state_dict())
    fxprune.save(pruned, tmp_path / "small")
    with torch.device("meta"):
        fresh = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(2, 2), num_heads=(2, 4))
    loaded = fxprune.load(tmp_path / "small", original=fresh)
    assert_same(loaded, pruned)
    (x,), _ = trace_notes(loaded).example_inputs
    # In training, stochastic depth draws for each of the two.
    assert torch.equal(loaded.eval()(x), pruned.eval()(x))


def test_channels_in_an_order_that_was_drawn_at_random_come_back(tmp_path: Path) -> None:
    def shuffled(seed: int) -> nn.Module:
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        return randomise(net(
            lambda self, x: self.out(self.a(x)[:, self.order].relu() + self.a(x)),
            a=nn.Conv2d(3, 16, 1), order=order, out=nn.Conv2d(16, 2, 1),
        )).float()  # fmt: skip

    small = fxprune.prune(shuffled(0), 0.6, example_inputs=image(), compensate=False)
    fxprune.save(small, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=shuffled(1))
    assert_same(small, loaded)
    assert torch.equal(small(image()), loaded(image()))


class ReadsValues(nn.Module):
    """Asks for values of a parameter, of a buffer and of what is computed from both, in a branch and as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("steps", torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        if self.gain.item() > 1:
            x = x * 2
        several = (self.first.bias * self.steps).abs()[:2].tolist()
        return self.second(self.first(x).relu()) * self.gain.item() + several[0] + float(self.steps)


def test_values_that_the_code_has_read_are_those_of_the_trace_whatever_the_weights_are_since(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = ReadsValues(), torch.randn(2, 8)
    pruned = fxprune.prune(model, 0.6, example_inputs=x, compensate=False)
    with torch.no_grad():
        pruned.gain.fill_(0.25)
        pruned.first.bias.add_(1)
    fxprune.save(pruned, tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = ReadsValues()
    with torch.no_grad():
        other.gain.fill_(0.5)
    for original in (model, other):
        loaded = fxprune.load(tmp_path / "model.safetensors", original=original)
        assert_same(loaded, pruned)
        assert torch.equal(loaded(x), pruned(x))
    fxprune.save(loaded, tmp_path / "again.safetensors")
    assert torch.equal(fxprune.load(tmp_path / "again.safetensors", original=other)(x), pruned(x))


class Caching(nn.Module):
    """Fills a cache of each usual kind when it runs first."""

    default: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)
        self.table: Tensor | None = None
        self.tables: dict[tuple[int, str], Tensor] = {}
        self.stack: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        if self.table is None or self.table.shape[0] != width:
            self.table = torch.arange(width) * 0.1
        if self.default is None:
            self.default = torch.arange(width) * 0.2
        if (width, "x") not in self.tables:
            self.tables[width, "x"] = torch.arange(width) * 0.3
        if not self.stack:
            self.stack.append(torch.arange(width) * 0.4)
        if not hasattr(self, "late"):
            self.late = torch.arange(width) * 0.5
        tables = self.table + self.default + self.tables[width, "x"] + self.stack[0] + self.late
        return self.second(self.first(x + tables).relu())


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("runs_since", [False, True])
def test_models_that_cache_tensors_come_back_whether_they_have_run_or_not(
    tmp_path: Path, ran_before: bool, runs_since: bool
) -> None:
    torch.manual_seed(0)
    model, fresh, x = Caching(), Caching(), torch.randn(2, 8)
    if ran_before:
        model(x)
    pruned = fxprune.prune(model, 0.6, example_inputs=x, compensate=False)
    fxprune.save(pruned, tmp_path / "model.safetensors")
    if runs_since:
        fresh(x)
    before = dict(vars(fresh))
    loaded = fxprune.load(tmp_path / "model.safetensors", original=fresh)
    assert_same(loaded, pruned)
    assert torch.equal(loaded(x), pruned(x))
    assert vars(fresh).keys() == before.keys()
    assert len(fresh.stack) == len(fresh.tables) == runs_since


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else self.layer(-x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("leaves", [("2",), (Branching,)])
def test_modules_that_were_traced_whole_are_so_wherever_the_model_is_traced_again(leaves: Any, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 8), Branching(), nn.Linear(8, 12), nn.Linear(12, 3))

    model, x = make(), torch.randn(40, 4)
    graph = fxprune.analyze(fxprune.trace(model, x, leaves=leaves))
    small = fxprune.rewrite(graph, fxprune.make_plan(graph, fxprune.scores(graph, "l2"), flops=0.6))
    fxprune.save(small, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=make())
    assert torch.equal(loaded(x), small(x))
    repaired = fxprune.compensate(model, small, x)
    assert fxprune.verify(model, repaired, x) < 1e-9
    fxprune.save(repaired, tmp_path / "repaired.safetensors")
    assert "2" in trace_notes(fxprune.load(tmp_path / "repaired.safetensors", original=make())).leaves
    fxprune.report(repaired, original=model, measure=False)


class Registering(nn.Module):
    """Buffers that forward registers, and one that it makes anew, none of them in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("state", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if not hasattr(self, "slopes"):
            self.register_buffer("slopes", torch.arange(3.0)[:, None], persistent=False)
        self.state = torch.zeros_like(y) if self.state.shape != y.shape else self.state * 0.5 + y
        return self.b(y + self.state + self.slopes)


@pytest.mark.parametrize("has_run", [False, True])
def test_buffers_that_forward_makes_need_not_be_there_when_a_checkpoint_is_read(tmp_path: Path, has_run: bool) -> None:
    model, x, path = Registering().eval(), torch.randn(3, 4), tmp_path / "small.safetensors"
    with torch.no_grad():
        model(x)
        model(x)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    fxprune.save(pruned, path)
    fresh = Registering().eval()
    if has_run:
        fresh(x)
    back = fxprune.load(path, original=fresh)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(back(x), pruned(x))
    assert list(back.state_dict()) == list(model.state_dict())
    assert hasattr(fresh, "slopes") == has_run


class Gridded(nn.Module):
    """The coordinates of the pixels are kept for the next call, in a list that is not there before the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(5, 8, 1), nn.Conv2d(8, 2, 1)
        self.grid, self.resolution = None, None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or self.resolution != x.shape[2:]:
            axes = torch.meshgrid(*(torch.linspace(0, 1, n) for n in x.shape[2:]), indexing="ij")
            self.grid, self.resolution = [axis[None, None] for axis in axes], x.shape[2:]
        return self.b(self.a(torch.cat([x, *(axis.repeat(len(x), 1, 1, 1) for axis in self.grid)], 1)).relu())


def test_what_a_model_keeps_from_its_first_call_need_not_be_there_when_a_checkpoint_is_read(tmp_path: Path) -> None:
    model, path = Gridded().eval(), tmp_path / "small.safetensors"
    model(image())
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), compensate=False)
    fxprune.save(pruned, path)
    fresh = Gridded()
    assert torch.equal(fxprune.load(path, original=fresh)(image()), pruned(image()))
    assert fresh.grid is None

"""A saved model comes back to the bit; any other file is refused, and nothing of it is executed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from invariant import image, net, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

import fxprune
from fxprune import FxpruneError
from fxprune.models import load_model
from fxprune.rewriting import pruning_notes
from fxprune.running.copies import named_tensors
from fxprune.tracing.notes import trace_notes
from fxprune.training.snapshots import save_snapshot


class Block(nn.Module):
    """Tied weights, a buffer outside of the state_dict, grouped convolutions and two norms."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.first = nn.Conv2d(width, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.rand(width, 1, 1) + 1, persistent=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)) * self.scale)
        x = torch.relu(self.first(self.depthwise(x)))
        return self.head(self.second(x).mean((2, 3)))


def pruned_block(seed: int = 0, **settings: Any) -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(seed)
    model = randomise(Block(), seed).float()
    return model, fxprune.prune(model, example_inputs=image(), **settings, compensate=False)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    first, second = named_tensors(a), named_tensors(b)
    assert list(first) == list(second)
    assert list(a.state_dict()) == list(b.state_dict())
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert (tensor.dtype, tensor.stride(), tensor.requires_grad) == (
            second[name].dtype,
            second[name].stride(),
            second[name].requires_grad,
        ), name
    assert [(name, part.training) for name, part in a.named_modules()] == [
        (name, part.training) for name, part in b.named_modules()
    ]
    assert fxprune.plan_of(a) == fxprune.plan_of(b)


def record_of(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fxprune"])


def change(path: Path, edit: Any) -> None:
    """Rewrite a checkpoint with another record."""
    record = record_of(path)
    record = edit(record) or record
    save_file(load_file(path), path, metadata={"fxprune": record if isinstance(record, str) else json.dumps(record)})


# --- round trips ------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_to_the_bit(tmp_path: Path) -> None:
    model, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "new" / "small.safetensors")
    fresh, state = Block(), torch.random.get_rng_state()
    loaded = fxprune.load(tmp_path / "new" / "small.safetensors", original=fresh)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(loaded, pruned)
    assert loaded.code == pruned.code
    assert loaded.second.weight is loaded.first.weight
    x = image(batch=3)
    assert torch.equal(loaded(x), pruned(x))
    assert fxprune.verify(model, loaded) < 1e-9
    # And once more, from what was loaded.
    fxprune.save(loaded, tmp_path / "again")
    assert record_of(tmp_path / "again") == record_of(tmp_path / "new" / "small.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["before", "after"])
def test_dtypes_come_back(tmp_path: Path, dtype: torch.dtype, when: str) -> None:
    model = Block().to(dtype if when == "before" else torch.float32)
    inputs = image().to(dtype if when == "before" else torch.float32)
    pruned = fxprune.prune(model, example_inputs=inputs, compensate=False).to(dtype)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=Block())
    assert_same(loaded, pruned)
    assert torch.equal(loaded(image().to(dtype)), pruned(image().to(dtype)))
    assert trace_notes(loaded).example_inputs[0][0].dtype == inputs.dtype


def test_modes_frozen_weights_and_memory_formats_come_back(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    pruned.train()
    pruned.norm.eval()
    pruned.stem.requires_grad_(False)
    pruned.to(memory_format=torch.channels_last)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=Block())
    assert_same(loaded, pruned)
    assert loaded.stem.weight.is_contiguous(memory_format=torch.channels_last)
    x = image().to(memory_format=torch.channels_last)
    assert torch.equal(loaded.eval()(x), pruned.eval()(x))


def test_compensated_trained_and_copied_models_come_back(tmp_path: Path) -> None:
    model, pruned = pruned_block()
    batch = torch.randn(32, 3, 6, 6)
    compensated = fxprune.compensate(model, pruned, batch)
    trained = fxprune.finetune(compensated, [(batch, torch.arange(32) % 5)], progress=False)
    for k, each in enumerate([compensated, trained, copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))]):
        fxprune.save(each, tmp_path / str(k))
        loaded = fxprune.load(tmp_path / str(k), original=model)
        assert_same(loaded, each)
        assert pruning_notes(loaded).compensated == pruning_notes(compensated).compensated


def test_arguments_of_any_nesting_come_back_as_shapes(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor, pair: Any, scale: float = 1.0) -> Tensor:
        return self.out(torch.relu(self.inner(x)) * scale) + pair[0] + pair[1]["bias"]

    model = net(forward, inner=nn.Linear(4, 8), out=nn.Linear(8, 3))
    inputs = {"x": torch.ones(2, 4), "pair": (torch.ones(3), {"bias": torch.ones(2, 3)}), "scale": 0.5}
    pruned = fxprune.prune(model, example_inputs=inputs, compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=copy.deepcopy(model))
    assert_same(loaded, pruned)
    args, kwargs = trace_notes(loaded).example_inputs
    assert (args, kwargs["scale"]) == ((), 0.5)
    assert [tuple(kwargs["pair"][0].shape), tuple(kwargs["pair"][1]["bias"].shape)] == [(3,), (2, 3)]
    # The values are the user's, and stay with the user.
    assert not torch.equal(kwargs["x"], inputs["x"])


def test_recurrent_weights_come_back(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.inner(self.lstm(x)[0])))

    model = net(forward, lstm=nn.LSTM(4, 6, batch_first=True), inner=nn.Linear(6, 8), out=nn.Linear(8, 3))
    pruned = fxprune.prune(model, 0.9, example_inputs=torch.randn(2, 5, 4), compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=model)
    x = torch.randn(2, 5, 4)
    assert torch.equal(loaded(x), pruned(x))


def test_the_original_and_the_pruned_model_are_not_changed(tmp_path: Path) -> None:
    model, pruned = pruned_block()
    before = {id(tensor): tensor.clone() for each in (model, pruned) for tensor in named_tensors(each).values()}
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=model)
    after = {id(tensor): tensor for each in (model, pruned) for tensor in named_tensors(each).values()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        for tensor in loaded.parameters():
            tensor.add_(1)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [("timm:test_resnet", {"num_classes": 7}), ("timm:test_vit", {"img_size": 96}), ("torchvision:squeezenet1_1", {})],
)
def test_a_library_model_needs_no_original(tmp_path: Path, spec: str, arguments: dict[str, Any]) -> None:
    pytest.importorskip(spec.partition(":")[0])
    pruned = fxprune.prune(load_model(spec, **arguments).eval(), method="l2", compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small")
    assert_same(loaded, pruned)
    (x,), _ = trace_notes(loaded).example_inputs
    assert torch.equal(loaded(x), pruned(x))


def test_timm_models_say_what_they_are_and_others_can_be_told(tmp_path: Path) -> None:
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    pruned = fxprune.prune(timm.create_model("test_resnet", num_classes=3, in_chans=1), method="l2", compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    assert_same(fxprune.load(tmp_path / "small"), pruned)
    pruned = fxprune.prune(models.squeezenet1_1(num_classes=3), method="l2", compensate=False)
    fxprune.save(pruned, tmp_path / "other")
    with pytest.raises(FxpruneError, match="does not say how the original is built: give it as original="):
        fxprune.load(tmp_path / "other")
    fxprune.save(pruned, tmp_path / "other", source="torchvision:squeezenet1_1", num_classes=3)
    assert_same(fxprune.load(tmp_path / "other"), pruned)


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


class ReadsAll(ReadsValues):
    def forward(self, x: Tensor) -> Tensor:
        wide = torch.outer(self.first.bias.repeat(20), self.first.bias.repeat(20))
        return self.second(self.first(x).relu()) + sum(wide.tolist()[3])


def test_a_model_that_reads_too_many_values_to_save_them_is_not_saved(tmp_path: Path) -> None:
    pruned = fxprune.prune(ReadsAll(), 0.6, example_inputs=torch.randn(2, 8), compensate=False)
    with pytest.raises(FxpruneError, match="the code of ReadsAll reads values of its parameters"):
        fxprune.save(pruned, tmp_path / "model.safetensors")


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


# --- what is refused --------------------------------------------------------------------------------------------------


class Malice:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


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


@pytest.mark.parametrize("write", ["torch", "old torch", "pickle"])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, write: str) -> None:
    path, trace_of_it = tmp_path / "small.safetensors", tmp_path / "executed"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Malice(trace_of_it)))
    else:
        torch.save({"a": Malice(trace_of_it)}, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(FxpruneError, match=r"small\.safetensors' is a pickle.*fxprune never unpickles.*fxprune\.save"):
        fxprune.load(path, original=Block())
    assert not trace_of_it.exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    content = (tmp_path / "small").read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "small").write_bytes(content[:size])
        with pytest.raises(FxpruneError, match=r"cannot be read as safetensors: .*cut short"):
            fxprune.load(tmp_path / "small", original=Block())


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FxpruneError, match="there is no file"):
        fxprune.load(tmp_path / "missing", original=Block())
    with pytest.raises(FxpruneError, match="cannot be read as safetensors"):
        fxprune.load(tmp_path, original=Block())
    (tmp_path / "text").write_text("nothing of the kind, but long enough for a header")
    with pytest.raises(FxpruneError, match="cannot be read as safetensors"):
        fxprune.load(tmp_path / "text", original=Block())
    save_file(Block().stem.state_dict(), tmp_path / "weights")
    with pytest.raises(FxpruneError, match=r"not one that fxprune\.save wrote"):
        fxprune.load(tmp_path / "weights", original=Block())
    save_snapshot(tmp_path / "run", {"step": 1})
    with pytest.raises(FxpruneError, match=r"not one that fxprune\.save wrote"):
        fxprune.load(tmp_path / "run", original=Block())


def test_a_newer_format_asks_for_a_newer_fxprune(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    change(tmp_path / "small", lambda record: {"format": 2, "versions": {"fxprune": "9.1"}, "new": True})
    with pytest.raises(FxpruneError, match=r"has format 2 of fxprune 9\.1; fxprune .* reads formats up to 1: upgrade"):
        fxprune.load(tmp_path / "small", original=Block())


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
    with pytest.raises(FxpruneError, match="operations or their settings are others"):
        fxprune.load(tmp_path / "small", original=Rewritten())
    x = image()
    assert torch.equal(fxprune.load(tmp_path / "small", original=Rewritten(), strict=False)(x), pruned(x))
    with pytest.raises(FxpruneError, match="another model"):
        fxprune.load(tmp_path / "small", original=Block(20), strict=False)


def _with(*path: Any, value: Any) -> Any:
    def edit(record: dict[str, Any]) -> None:
        inner: Any = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: "{",
        lambda record: "[" * 100_000,
        lambda record: "7",
        lambda record: "null",
        lambda record: "{}",
        lambda record: '{"format": 1, "versions": 3}',
        _with("format", value="1"),
        _with("format", value=True),
        _with("format", value=0),
        _with("plan", value=[]),
        _with("plan", "flops", value=-1),
        _with("plan", "flops", value="many"),
        _with("plan", "indices", 0, value=[]),
        _with("plan", "indices", 0, value=[-1, 2]),
        _with("plan", "indices", 0, value=[2, 1]),
        _with("plan", "indices", 0, value=[1, 1]),
        _with("plan", "indices", 0, value=[0, 10**30]),
        _with("plan", "indices", 0, value=[0, True]),
        _with("plan", "indices", 0, value=[0.0, 1.0]),
        _with("plan", "indices", 0, value="01"),
        _with("plan", "indices", value={}),
        _with("plan", "kept", value=[]),
        _with("plan", "kept", "stem.weight", value=3),
        _with("plan", "kept", "stem.weight", value={"0": 99}),
        _with("plan", "kept", "stem.weight", value={"0": [1]}),
        _with("plan", "kept", "stem.weight", value={"-1": 0}),
        _with("plan", "kept", "stem.weight", value={"9": 0}),
        _with("plan", "kept", "no.such", value={"0": 0}),
        _with("original", "tensors", "stem.weight", value=[[-1], "float32"]),
        _with("original", "tensors", "stem.weight", value=[[16, 3, 3, 3], "load"]),
        _with("original", "tensors", "stem.weight", value=[[16, 3, 3, 3.0], "float32"]),
        _with("original", "tensors", value=3),
        _with("original", "ties", value=[[1]]),
        _with("inputs", value=None),
        _with("inputs", "tensors", "inputs.0.0", value=[[2, 3, 10**6, 10**6], "float32"]),
        _with("inputs", "tensors", "inputs.0.0", value=[[2] * 1000, "float32"]),
        _with("inputs", "tensors", value={}),
        _with("inputs", "structure", value=[1, 2]),
        _with("inputs", "structure", value={"$": "tensor"}),
        _with("source", value="timm:resnet18"),
        _with("source", value={"spec": 3, "arguments": {}}),
        _with("aliases", value={"second.weight": 3}),
        _with("strides", value={"stem.weight": ["a"]}),
        _with("strides", value={"stem.weight": [10**15, 1, 1, 1]}),
        _with("strides", value={"stem.weight": [1]}),
        _with("strides", value={"stem.weight": [0, 0, 0, 0]}),
        _with("frozen", value=7),
        _with("training", value=[[]]),
        _with("meta", value={"compensated": {"$": "tensor", "name": "x"}}),
        _with("meta", value={"values_read": 3}),
        _with("meta", value={"constant_places": {"scale": 3}}),
        _with("meta", value={"constant_places": {"no.such": ["", "cache"]}}),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, edit: Any) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    change(tmp_path / "small", edit)
    with pytest.raises(FxpruneError, match=r"small': its record is damaged: "):
        fxprune.load(tmp_path / "small", original=Block())


def test_a_plan_that_does_not_fit_the_weights_or_the_model_is_refused(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    content = (tmp_path / "small").read_bytes()

    def shorten(record: dict[str, Any]) -> None:
        for stays in record["plan"]["indices"]:
            del stays[1:]

    change(tmp_path / "small", shorten)
    with pytest.raises(FxpruneError, match=r"has shape \[.*\], but its plan makes \[1, "):
        fxprune.load(tmp_path / "small", original=Block())

    def swap(record: dict[str, Any]) -> None:
        record["plan"]["kept"]["norm.bias"]["0"] = len(record["plan"]["indices"])
        record["plan"]["indices"].append([0, 1])

    (tmp_path / "small").write_bytes(content)
    change(tmp_path / "small", swap)
    with pytest.raises(FxpruneError, match="its plan does not fit the model: plan keeps"):
        fxprune.load(tmp_path / "small", original=Block())

    (tmp_path / "small").write_bytes(content)
    change(tmp_path / "small", lambda record: record["plan"]["kept"].pop("norm.weight") and None)
    with pytest.raises(FxpruneError, match=r"norm.weight has shape \[\d+\], but its plan makes \[16\]"):
        fxprune.load(tmp_path / "small", original=Block())


def test_missing_and_extra_tensors_are_refused(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    with safe_open(tmp_path / "small", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "small")
    save_file({**tensors, "more": torch.zeros(1)}, tmp_path / "small", metadata=metadata)
    with pytest.raises(FxpruneError, match="has a tensor more, which the model does not"):
        fxprune.load(tmp_path / "small", original=Block())
    del tensors["scale"]
    save_file(tensors, tmp_path / "small", metadata=metadata)
    with pytest.raises(FxpruneError, match="has no tensor scale"):
        fxprune.load(tmp_path / "small", original=Block())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"spec": "os:getcwd", "arguments": {}},
            "only timm:NAME and torchvision:NAME are built because a file says so",
        ),
        ({"spec": "timm:hf-hub:someone/model", "arguments": {}}, "only timm:NAME and torchvision:NAME"),
        ({"spec": "timm:local-dir:x", "arguments": {}}, "only timm:NAME and torchvision:NAME"),
        (
            {"spec": "timm:test_resnet", "arguments": {"checkpoint_path": "x.pth"}},
            "with checkpoint_path='x.pth'",
        ),
        ({"spec": "timm:test_resnet", "arguments": {"pretrained": True}}, "with pretrained=True, which is not passed"),
        ({"spec": "timm:test_resnet", "arguments": {"num_classes": 10**12}}, "with num_classes=1000000000000"),
        ({"spec": "timm:test_resnet", "arguments": {"num_classes": {"a": 1}}}, "with num_classes="),
        ({"spec": "timm:test_vit", "arguments": {}}, "timm:test_vit is another model: it has cls_token .* besides"),
        ({"spec": "timm:no_such_net", "arguments": {}}, "timm has no 'no_such_net'"),
    ],
)
def test_a_file_cannot_have_anything_built_but_models(tmp_path: Path, source: Any, message: str) -> None:
    pytest.importorskip("timm")
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    change(tmp_path / "small", _with("source", value=source))
    with pytest.raises(FxpruneError, match=message):
        fxprune.load(tmp_path / "small")


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(FxpruneError, match="Block has no plan"):
        fxprune.save(Block(), tmp_path / "small")
    _, pruned = pruned_block()
    for source, arguments, message in (
        ("os:getcwd", {}, "only timm:NAME and torchvision:NAME"),
        ("timm:resnet18", {"norm_layer": nn.BatchNorm2d}, "the arguments of timm:resnet18 must be numbers"),
        (None, {"num_classes": 3}, "num_classes given without source="),
    ):
        with pytest.raises(FxpruneError, match=message):
            fxprune.save(pruned, tmp_path / "small", source=source, **arguments)
    with pytest.raises(FxpruneError, match="is on meta"):
        fxprune.save(copy.deepcopy(pruned).to("meta"), tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_write_that_fails_midway_leaves_the_previous_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    content = (tmp_path / "small").read_bytes()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*(("pathlib.Path.replace", full) if where == "replace" else (os, where, full)))
        with pytest.raises(FxpruneError, match=r"cannot be written: .*No space left.*previous one is whole"):
            fxprune.save(pruned_block(1)[1], tmp_path / "small")
    assert [entry.name for entry in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small").read_bytes() == content


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    (tmp_path / "usual").touch()
    assert stat.S_IMODE((tmp_path / "small").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_other_tools_read_the_weights(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    tensors = load_file(tmp_path / "small")
    assert set(pruned.state_dict()) - set(tensors) == {"second.weight"}
    assert torch.equal(tensors["stem.weight"], pruned.stem.weight)


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


def test_the_original_goes_by_name(tmp_path: Path) -> None:
    for call in (lambda: fxprune.load(tmp_path / "s", Block()), lambda: fxprune.load(tmp_path / "s", model=Block())):
        with pytest.raises(FxpruneError, match=r"^load: .* argument.*: call load\(path, original=model\)$"):
            call()

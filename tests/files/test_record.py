"""The record of a checkpoint: whatever is not as it should be is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Block, assert_same, change, pruned_block, with_value
from invariant import net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.files.record import Record, kind_of
from fxprune.models import Source
from fxprune.provenance import pruning_notes
from fxprune.tracing.notes import TraceNotes, trace_notes


def test_a_newer_format_asks_for_a_newer_fxprune(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    change(tmp_path / "small", lambda record: {"format": 2, "versions": {"fxprune": "9.1"}, "new": True})
    with pytest.raises(FxpruneError, match=r"has format 2 of fxprune 9\.1; fxprune .* reads formats up to 1: upgrade"):
        fxprune.load(tmp_path / "small", original=Block())


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: "{",
        lambda record: "[" * 100_000,
        lambda record: "7",
        lambda record: "null",
        lambda record: "{}",
        lambda record: '{"format": 1, "versions": 3}',
        with_value("format", value="1"),
        with_value("format", value=True),
        with_value("format", value=0),
        with_value("plan", value=[]),
        with_value("plan", "flops", value=-1),
        with_value("plan", "flops", value="many"),
        with_value("plan", "indices", 0, value=[]),
        with_value("plan", "indices", 0, value=[-1, 2]),
        with_value("plan", "indices", 0, value=[2, 1]),
        with_value("plan", "indices", 0, value=[1, 1]),
        with_value("plan", "indices", 0, value=[0, 10**30]),
        with_value("plan", "indices", 0, value=[0, True]),
        with_value("plan", "indices", 0, value=[0.0, 1.0]),
        with_value("plan", "indices", 0, value="01"),
        with_value("plan", "indices", value={}),
        with_value("plan", "kept", value=[]),
        with_value("plan", "kept", "stem.weight", value=3),
        with_value("plan", "kept", "stem.weight", value={"0": 99}),
        with_value("plan", "kept", "stem.weight", value={"0": [1]}),
        with_value("plan", "kept", "stem.weight", value={"-1": 0}),
        with_value("plan", "kept", "stem.weight", value={"9": 0}),
        with_value("plan", "kept", "no.such", value={"0": 0}),
        with_value("original", "tensors", "stem.weight", value=[[-1], "float32"]),
        with_value("original", "tensors", "stem.weight", value=[[16, 3, 3, 3], "load"]),
        with_value("original", "tensors", "stem.weight", value=[[16, 3, 3, 3.0], "float32"]),
        with_value("original", "tensors", value=3),
        with_value("original", "ties", value=[[1]]),
        with_value("inputs", value=None),
        with_value("inputs", "tensors", "inputs.0.0", value=[[2, 3, 10**6, 10**6], "float32"]),
        with_value("inputs", "tensors", "inputs.0.0", value=[[2] * 1000, "float32"]),
        with_value("inputs", "tensors", value={}),
        with_value("inputs", "structure", value=[1, 2]),
        with_value("inputs", "structure", value={"$": "tensor"}),
        with_value("source", value="timm:resnet18"),
        with_value("source", value={"spec": 3, "arguments": {}}),
        with_value("aliases", value={"second.weight": 3}),
        with_value("strides", value={"stem.weight": ["a"]}),
        with_value("strides", value={"stem.weight": [10**15, 1, 1, 1]}),
        with_value("strides", value={"stem.weight": [1]}),
        with_value("strides", value={"stem.weight": [0, 0, 0, 0]}),
        with_value("frozen", value=7),
        with_value("training", value=[[]]),
        with_value("meta", value={"compensated": {"$": "tensor", "name": "x"}}),
        with_value("meta", value={"values_read": 3}),
        with_value("meta", value={"constant_places": {"scale": 3}}),
        with_value("meta", value={"constant_places": {"no.such": ["", "cache"]}}),
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


def test_example_inputs_have_the_shapes_and_types_of_the_record() -> None:
    kinds = {"a": ((2, 3), "float16"), "b": ((2,), "int64"), "c": ((1,), "bool")}
    packed = {"$": "tuple", "items": [{"$": "tuple", "items": []}, {k: {"$": "tensor", "name": k} for k in kinds}]}
    _, pruned = pruned_block()
    record = Record(pruning_notes(pruned), TraceNotes(), {}, packed, kinds, {}, {}, (), (), {})
    (args, kwargs), (_, again) = (record.example_inputs(Path("small")) for _ in range(2))
    assert args == ()
    assert {name: kind_of(tensor) for name, tensor in kwargs.items()} == kinds
    assert (kwargs["b"].tolist(), kwargs["c"].tolist()) == ([0, 0], [True])
    assert torch.equal(kwargs["a"], again["a"])


def test_json_gives_the_record_back() -> None:
    _, pruned = pruned_block()
    trace = TraceNotes(
        remarks=("so it is",),
        source=Source("timm:x", {"num_classes": 3}),
        values_read={"k": {"number": 2}},
        leaves=("a",),
        constant_places={"_tensor_constant0": ("", "tables", (3, "x"))},
    )
    pruning = replace(pruning_notes(pruned), compensated=("ridge",))
    record = Record(pruning, trace, {"torch": "2"}, [], {}, {"b": "a"}, {"a": [1, 3]}, ("a",), ("", "a"), {"mine": 1})
    back = Record.read(Path("small"), record.to_json())
    assert back.pruning.plan == pruning.plan
    assert (back.pruning.original, back.pruning.compensated) == (pruning.original, ("ridge",))
    assert vars(back.trace) == vars(trace)
    for name in ("versions", "inputs", "input_kinds", "aliases", "strides", "frozen", "training", "more"):
        assert getattr(back, name) == getattr(record, name), name


def test_values_that_others_keep_with_the_model_are_saved_where_json_can_hold_them(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    pruned.meta.update(accuracy=0.9, weights=torch.ones(1), helper=object())
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=Block())
    assert loaded.meta["accuracy"] == 0.9
    assert not {"weights", "helper"} & loaded.meta.keys()
